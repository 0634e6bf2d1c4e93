"""The stage: check everything that can be known, start the ranks, follow their journal, tell how it ended."""

from __future__ import annotations

import json
import secrets
import threading
from contextlib import suppress
from typing import Any

from pipeline.base.errors import FailedError, InterruptedRunError, RefusedError, StoreAccessError, VitpipeError
from pipeline.base.journal import Journal
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store, Stores
from pipeline.checkpoints.card import list_attempts
from pipeline.pretrain.initial_weights import check_initial
from pipeline.pretrain.plan import check_recipe, read_training_data, world_sizes
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import open_run_card
from pipeline.pretrain.worker import failure_key, pretrain_worker
from pipeline.records.run import MetricsRow, extended, list_steps, run_prefix
from pipeline.train.ray_executor import ElasticSizes, launch

_POLL_SECONDS = 2.0


class MetricsFollower:
    """A thread that reads one part of the newest attempt's journal after the other: no listing grows with the run."""

    def __init__(self, workspace: Store, recipe: PretrainRecipe, progress: Progress) -> None:
        self._workspace, self._recipe, self._progress = workspace, recipe, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._old: set[str] = set()
        self._attempt, self._part, self._step = "", 0, 0

    def __enter__(self) -> MetricsFollower:
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


def pretrain(
    workspace: Store, stores: Stores, recipe: PretrainRecipe, *, code_version: str, progress: Progress
) -> list[int]:
    """Train *recipe* to its last step, resuming what is there; the steps that have a checkpoint.

    Needs a ray cluster that is connected. Raises RefusedError kinds before a rank starts, FailedError kinds after, and
    InterruptedRunError when it was stopped.
    """
    data = read_training_data(workspace, recipe)
    check_recipe(recipe, data)
    card = open_run_card(workspace, recipe, data, code_version, init_sha256=check_initial(workspace, stores, recipe))
    recipe = recipe.model_copy(update={"steps": extended(workspace, card)})
    steps = list_steps(workspace, recipe.run)
    if recipe.steps in steps:
        progress.say(f"run {recipe.run} is complete: {recipe.steps} steps")
        return steps
    if steps:
        progress.say(f"run {recipe.run} resumes from step {steps[-1]}")
    elif card.parent:
        progress.say(f"run {recipe.run} begins at {card.parent}")
    config = {
        "workspace": workspace.uri,
        "stores": {name: settings.model_dump() for name, settings in stores.items()},
        "recipe": recipe.model_dump(mode="json"),
        "token": secrets.token_hex(8),
    }
    try:
        _launch(workspace, recipe, config, progress)
        steps = list_steps(workspace, recipe.run)
    except StoreAccessError as error:  # the ranks were started: no refusal any more
        raise FailedError(error.what, error.way_out) from error
    return steps


def _launch(workspace: Store, recipe: PretrainRecipe, config: dict[str, Any], progress: Progress) -> None:
    """Until the last step is saved. Raises what ended the ranks before it."""
    key = failure_key(recipe.run, config["token"])
    resources = {"CPU": recipe.resources.cpus} | ({"GPU": recipe.resources.gpus} if recipe.resources.gpus else {})
    places = ElasticSizes(world_sizes(recipe), resources, recipe.max_restarts, recipe.grace_seconds)
    with MetricsFollower(workspace, recipe, progress):
        try:
            is_stopped = launch(
                pretrain_worker,
                config,
                places,
                _Events(workspace, recipe.run, progress),
                reached=lambda: _saved(workspace, recipe.run),
            )
        except VitpipeError as error:
            raise _told(workspace, key) or error from error
    if recipe.steps in list_steps(workspace, recipe.run):
        return
    told = _told(workspace, key)
    if told is None and is_stopped:
        told = InterruptedRunError(
            f"run {recipe.run} was stopped by SIGTERM", "the same command goes on where it stopped"
        )
    raise told or FailedError(f"run {recipe.run} ended before step {recipe.steps}")


def _saved(workspace: Store, run: str) -> int:
    """The newest step that is saved; -1 when there is none, or nobody can look."""
    try:
        return max(list_steps(workspace, run), default=-1)
    except (FailedError, StoreAccessError):
        return -1


def _told(workspace: Store, key: str) -> VitpipeError | None:
    """The error that a rank left behind at *key*, which is taken from there."""
    try:
        told = json.loads(workspace.read(key))
    except (FileNotFoundError, ValueError, FailedError, StoreAccessError):
        return None
    with suppress(FailedError, StoreAccessError):
        workspace.delete(key)
    kinds = {kind.exit_code: kind for kind in (RefusedError, InterruptedRunError)}
    return kinds.get(told["exit_code"], FailedError)(told["message"])


class _Events:
    """What people should know: shown, and kept as ``logs/<attempt>/driver/part-*.jsonl``."""

    def __init__(self, workspace: Store, run: str, progress: Progress) -> None:
        self._workspace, self._run, self._progress = workspace, run, progress
        self._journals: dict[str, Journal] = {}

    def __call__(self, attempt: str, text: str) -> None:
        self._progress.say(text)
        if not attempt:
            return  # no rank has begun: there is no log to keep it in
        prefix = f"{run_prefix(self._run)}/logs/{attempt}/driver"
        journal = self._journals.setdefault(attempt, Journal(self._workspace, prefix))
        journal.append({"text": text})
        try:
            journal.flush()
        except (FailedError, RefusedError):
            return  # shown it was; it is written with the next one
