"""The stage: check everything that can be known, start the ranks, follow their journal, tell how it ended."""

from __future__ import annotations

import json
import threading

from pipeline.base.errors import FailedError, InputError, RefusedError, StoreAccessError, VitpipeError
from pipeline.base.progress import Progress
from pipeline.base.store import Store, Stores
from pipeline.checkpoints.resume import list_steps
from pipeline.pretrain.data import read_training_data
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run import check_recipe, open_run
from pipeline.pretrain.worker import failure_key, pretrain_worker
from pipeline.records.run import MetricsRow, run_prefix
from pipeline.train.launch import launch

_POLL_SECONDS = 2.0


def pretrain(
    workspace: Store, stores: Stores, recipe: PretrainRecipe, *, code_version: str, progress: Progress
) -> list[int]:
    """Train *recipe* to its last step, resuming what is there; the steps that have a checkpoint.

    Needs a ray cluster that is connected. Raises RefusedError kinds before a rank starts, FailedError kinds after.
    """
    data = read_training_data(workspace, recipe)
    check_recipe(recipe, data)
    if data.num_samples < recipe.workers:
        raise InputError(f"dataset {data.name} has {data.num_samples} samples for {recipe.workers} ranks")
    open_run(workspace, recipe, data, code_version)
    steps = list_steps(workspace, recipe.run)
    if recipe.steps in steps:
        progress.say(f"run {recipe.run} is complete: {recipe.steps} steps")
        return steps
    if any(steps):
        progress.say(f"run {recipe.run} resumes from step {steps[-1]}")
    workspace.delete(failure_key(recipe.run))
    config = {
        "workspace": workspace.uri,
        "stores": {name: settings.model_dump() for name, settings in stores.items()},
        "recipe": recipe.model_dump(mode="json"),
    }
    resources = {"CPU": recipe.resources.cpus} | ({"GPU": recipe.resources.gpus} if recipe.resources.gpus else {})
    with _Follower(workspace, recipe, progress):
        try:
            launch(
                pretrain_worker,
                config,
                num_workers=recipe.workers,
                resources=resources,
                max_failures=recipe.max_restarts,
            )
        except VitpipeError as error:
            raise _told(workspace, recipe.run) or error from error
    steps = list_steps(workspace, recipe.run)
    if recipe.steps not in steps:
        raise _told(workspace, recipe.run) or FailedError(f"run {recipe.run} ended before step {recipe.steps}")
    return steps


def _told(workspace: Store, run: str) -> VitpipeError | None:
    """The error that a rank left behind."""
    try:
        told = json.loads(workspace.read(failure_key(run)))
    except (FileNotFoundError, ValueError):
        return None
    kind = RefusedError if told["exit_code"] == RefusedError.exit_code else FailedError
    return kind(told["message"])


class _Follower:
    """A thread that turns the run's journal into progress while the ranks work."""

    def __init__(self, workspace: Store, recipe: PretrainRecipe, progress: Progress) -> None:
        self._workspace, self._recipe, self._progress = workspace, recipe, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._seen: set[str] = set()
        self._step = 0

    def __enter__(self) -> _Follower:
        prefix = f"{run_prefix(self._recipe.run)}/metrics/"
        self._seen = {info.key for info in self._workspace.list(prefix)}
        self._progress.start(f"pretrain {self._recipe.run}", self._recipe.steps)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        self._progress.finish()

    def _follow(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            try:
                self._look()
            except (StoreAccessError, FailedError):
                continue  # only a display: the ranks say what is wrong with the store

    def _look(self) -> None:
        for info in self._workspace.list(f"{run_prefix(self._recipe.run)}/metrics/"):
            if info.key in self._seen:
                continue
            self._seen.add(info.key)
            for line in self._workspace.read(info.key).decode().splitlines():
                row = MetricsRow.model_validate_json(line)
                loss = float.fromhex(row.loss)
                self._progress.advance(
                    max(0, row.step - self._step), f"loss {loss:.3f}, {row.images_per_second:.0f} images/s"
                )
                self._step = max(self._step, row.step)
