"""The stage: check everything that can be known, start the ranks, follow their journal, tell how it ended."""

from __future__ import annotations

import json

from pipeline.base.errors import FailedError, InterruptedRunError, RefusedError, VitpipeError
from pipeline.base.journal import Journal
from pipeline.base.progress import Progress
from pipeline.base.store import Store, Stores
from pipeline.pretrain.data import read_training_data
from pipeline.pretrain.follow import Follower
from pipeline.pretrain.initial import check_initial
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run import check_recipe, open_run, world_sizes
from pipeline.pretrain.worker import failure_key, pretrain_worker
from pipeline.records.run import extended, list_steps, run_prefix
from pipeline.train.launch import Places, launch


def pretrain(
    workspace: Store, stores: Stores, recipe: PretrainRecipe, *, code_version: str, progress: Progress
) -> list[int]:
    """Train *recipe* to its last step, resuming what is there; the steps that have a checkpoint.

    Needs a ray cluster that is connected. Raises RefusedError kinds before a rank starts, FailedError kinds after, and
    InterruptedRunError when it was stopped.
    """
    data = read_training_data(workspace, recipe)
    check_recipe(recipe, data)
    card = open_run(workspace, recipe, data, code_version, init_sha256=check_initial(workspace, stores, recipe))
    recipe = recipe.model_copy(update={"steps": extended(workspace, card)})
    steps = list_steps(workspace, recipe.run)
    if recipe.steps in steps:
        progress.say(f"run {recipe.run} is complete: {recipe.steps} steps")
        return steps
    if steps:
        progress.say(f"run {recipe.run} resumes from step {steps[-1]}")
    elif card.parent:
        progress.say(f"run {recipe.run} begins at {card.parent}")
    workspace.delete(failure_key(recipe.run))
    config = {
        "workspace": workspace.uri,
        "stores": {name: settings.model_dump() for name, settings in stores.items()},
        "recipe": recipe.model_dump(mode="json"),
    }
    resources = {"CPU": recipe.resources.cpus} | ({"GPU": recipe.resources.gpus} if recipe.resources.gpus else {})
    places = Places(world_sizes(recipe), resources, recipe.max_restarts, recipe.grace_seconds)
    with Follower(workspace, recipe, progress):
        try:
            launch(pretrain_worker, config, places, _Events(workspace, recipe.run, progress))
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
    kinds = {kind.exit_code: kind for kind in (RefusedError, InterruptedRunError)}
    return kinds.get(told["exit_code"], FailedError)(told["message"])


class _Events:
    """What people should know: shown, and kept as ``logs/<attempt>/driver/part-*.jsonl``."""

    def __init__(self, workspace: Store, run: str, progress: Progress) -> None:
        self._workspace, self._run, self._progress = workspace, run, progress
        self._journals: dict[str, Journal] = {}

    def __call__(self, attempt: str, text: str) -> None:
        self._progress.say(text)
        prefix = f"{run_prefix(self._run)}/logs/{attempt}/driver"
        journal = self._journals.setdefault(attempt, Journal(self._workspace, prefix))
        journal.append({"text": text})
        try:
            journal.flush()
        except (FailedError, RefusedError):
            return  # shown it was; it is written with the next one
