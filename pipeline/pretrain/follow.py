"""The driver's view of a run: its journal, turned into progress while the ranks work."""

from __future__ import annotations

import threading

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.checkpoints.attempts import list_attempts
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import MetricsRow, list_steps, run_prefix

_POLL_SECONDS = 2.0


class Follower:
    """A thread that reads one part of the newest attempt's journal after the other: no listing grows with the run."""

    def __init__(self, workspace: Store, recipe: PretrainRecipe, progress: Progress) -> None:
        self._workspace, self._recipe, self._progress = workspace, recipe, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._old: set[str] = set()
        self._attempt, self._part, self._step = "", 0, 0

    def __enter__(self) -> Follower:
        self._old = set(list_attempts(self._workspace, self._recipe.run))
        self._step = max(list_steps(self._workspace, self._recipe.run), default=0)
        self._progress.start(f"pretrain {self._recipe.run}", self._recipe.steps)
        self._progress.advance(self._step)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._try()
        self._progress.finish()

    def _follow(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._try()

    def _try(self) -> None:
        try:
            self._look()
        except (StoreAccessError, FailedError):
            return  # only a display: the ranks say what is wrong with the store

    def _look(self) -> None:
        newest = max((name for name in list_attempts(self._workspace, self._recipe.run)), default="")
        if not newest or newest in self._old:
            return
        if newest != self._attempt:
            self._attempt, self._part = newest, 0
        while True:
            key = f"{run_prefix(self._recipe.run)}/metrics/{self._attempt}/part-{self._part:08d}.jsonl"
            try:
                lines = self._workspace.read(key).decode().splitlines()
            except FileNotFoundError:
                return
            self._part += 1
            for line in lines:
                self._show(MetricsRow.model_validate_json(line))

    def _show(self, row: MetricsRow) -> None:
        mfu = f", MFU {row.mfu:.0%}" if row.mfu is not None else ""
        note = f"loss {float.fromhex(row.loss):.3f}, {row.images_per_second:.0f} images/s{mfu}"
        self._progress.advance(max(0, row.step - self._step), note)
        self._step = max(self._step, row.step)
