"""The stage ``pretrain``: check a run, start its ranks, follow their journal, raise what ended them before the end."""

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
from pipeline.pretrain.plan import TrainingPlan, make_plan, read_training_data
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import open_run_card
from pipeline.pretrain.worker import failure_key, pretrain_worker
from pipeline.records.run import MetricsRow, RunCard, extended, list_steps, run_prefix
from pipeline.train.ray_executor import ElasticSizes, launch

_POLL_SECONDS = 2.0  # between two looks at the journal


def check(
    workspace: Store, stores: Stores, recipe: PretrainRecipe, *, code_version: str
) -> tuple[TrainingPlan, RunCard]:
    """Everything that can be known before a rank starts: the checked plan, and the run's card, made if there is none.

    Raises RefusedError kinds. A command that checks before it connects to ray does these steps itself, so that a
    refused recipe costs no import of torch and ray.
    """
    plan = make_plan(recipe, read_training_data(workspace, recipe))
    init_sha256 = check_initial(workspace, stores, recipe)
    return plan, open_run_card(workspace, recipe, plan.data, code_version, init_sha256=init_sha256)


def pretrain(workspace: Store, stores: Stores, plan: TrainingPlan, card: RunCard, *, progress: Progress) -> list[int]:
    """Train run *card* to its last step, resuming what is there; the steps that have a checkpoint.

    Needs a ray cluster that is connected. Raises FailedError kinds, and InterruptedRunError when it was stopped.
    """
    plan = plan.with_steps(extended(workspace, card))
    num_steps = plan.recipe.steps
    steps = list_steps(workspace, card.name)
    if num_steps in steps:
        progress.message(f"run {card.name} is complete: {num_steps} steps")
        return steps
    if steps:
        progress.message(f"run {card.name} resumes from step {steps[-1]}")
    elif card.parent:
        progress.message(f"run {card.name} begins at {card.parent}")
    config = {
        "workspace": workspace.uri,
        "stores": stores,
        "plan": plan,
        "run": card,
        "token": secrets.token_hex(8),
    }
    try:
        _launch(workspace, plan, config, progress)
        steps = list_steps(workspace, card.name)
    except StoreAccessError as error:  # the ranks were started: no refusal any more
        raise FailedError(error.message, error.way_out) from error
    return steps


def _launch(workspace: Store, plan: TrainingPlan, config: dict[str, Any], progress: Progress) -> None:
    """Until the last step is saved. Raises what ended the ranks before it."""
    recipe = plan.recipe
    error_key = failure_key(recipe.run, config["token"])
    resources = {"CPU": recipe.resources.cpus} | ({"GPU": recipe.resources.gpus} if recipe.resources.gpus else {})
    sizes = ElasticSizes(plan.world_sizes, resources, recipe.max_restarts, recipe.grace_seconds)
    with MetricsFollower(workspace, recipe, progress):
        try:
            is_stopped = launch(
                pretrain_worker,
                config,
                sizes,
                _Events(workspace, recipe.run, progress),
                reached=lambda: _newest_step(workspace, recipe.run),
            )
        except VitpipeError as error:
            raise _take_rank_error(workspace, error_key) or error from error
    if recipe.steps in list_steps(workspace, recipe.run):
        return
    rank_error = _take_rank_error(workspace, error_key)
    if rank_error is None and is_stopped:
        rank_error = InterruptedRunError(
            f"run {recipe.run} was stopped by SIGTERM", "the same command goes on where it stopped"
        )
    raise rank_error or FailedError(f"run {recipe.run} ended before step {recipe.steps}")


def _newest_step(workspace: Store, run: str) -> int:
    """The newest step that is saved; -1 when there is none, or nobody can look."""
    try:
        return max(list_steps(workspace, run), default=-1)
    except (FailedError, StoreAccessError):
        return -1


def _take_rank_error(workspace: Store, key: str) -> VitpipeError | None:
    """The error that a rank left at *key*, which is deleted; None when there is none, or it cannot be read."""
    try:
        error = json.loads(workspace.read(key))
    except (FileNotFoundError, ValueError, FailedError, StoreAccessError):
        return None
    with suppress(FailedError, StoreAccessError):
        workspace.delete(key)
    kinds = {kind.exit_code: kind for kind in (RefusedError, InterruptedRunError)}
    return kinds.get(error["exit_code"], FailedError)(error["message"])


class MetricsFollower:
    """A thread that turns the run's journal into progress while the ranks work.

    It reads one part of the newest attempt's journal after the other: no listing grows with the run.
    """

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
        newest = max(list_attempts(self._workspace, self._recipe.run), default="")
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


class _Events:
    """What people should know: shown, and kept as ``logs/<attempt>/driver/part-*.jsonl``."""

    def __init__(self, workspace: Store, run: str, progress: Progress) -> None:
        self._workspace, self._run, self._progress = workspace, run, progress
        self._journals: dict[str, Journal] = {}

    def __call__(self, attempt: str, text: str) -> None:
        self._progress.message(text)
        if not attempt:
            return  # no rank has begun: there is no log to keep it in
        prefix = f"{run_prefix(self._run)}/logs/{attempt}/driver"
        journal = self._journals.setdefault(attempt, Journal(self._workspace, prefix))
        journal.append({"text": text})
        try:
            journal.flush()
        except (FailedError, RefusedError):
            return  # it was shown; it is written with the next one
