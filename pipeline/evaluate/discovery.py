"""From a run or imported weights to the evaluations that a suite asks for, and the suites that a workspace remembers.

::

    EvaluationRequest --planner()--> RunPlanner (checkpoints) or WeightsPlanner (imported weights)
                                       .plan(recipe) --> PlannedEvaluation, each once
    store_suite, stored_suites         the suites that a run was judged on, by name

No torch here: requests are refused, listed and counted without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.base.config import build
from pipeline.base.errors import DamageError, InputError, RecipeError
from pipeline.base.progress import Progress, Silent
from pipeline.base.store.protocol import Store
from pipeline.checkpoints.card import check_complete
from pipeline.evaluate.leakage import refuse_leak
from pipeline.evaluate.ledger import Ledger, State
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import Patterns, PlannedEvaluation, plan_evaluations, state_of
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.records.dataset import read_dataset_card
from pipeline.records.imported import ImportedCard, list_imported_cards, read_imported_card
from pipeline.records.ledger import StoredSuite, suite_prefix
from pipeline.records.record import parse_record
from pipeline.records.run import (
    CheckpointCard,
    extended,
    list_retired_cards,
    list_runs,
    list_steps,
    read_checkpoint_card,
    read_run_card,
    step_prefix,
)

if TYPE_CHECKING:  # it brings torch along
    from pipeline.evaluate.imported_weights import Weights

ReadRecipe = Callable[[], EvaluateRecipe]


@dataclass(frozen=True)
class EvaluationRequest:
    """A run, and the suite to judge it on; *every_seconds*: look again so often, until the run is complete.

    *weights*: judge these instead of a run; *run* is then the name that they have in the workspace.
    """

    run: str
    suite: str
    read_recipe: ReadRecipe
    every_seconds: float | None = None
    weights: Weights | None = None

    def planner(self, workspace: Store) -> Planner:
        """Plans what is requested; the weights need not be stored yet. Raises InputError when there is no such run."""
        if self.weights is not None:
            return WeightsPlanner(workspace, self.weights.card, is_stored=False)
        return make_planner(workspace, self.run, Silent())

    def with_options(
        self, max_parallel: int | None, priority: list[str] | None, every_seconds: float | None
    ) -> EvaluationRequest:
        """The same request with the options of the command line, where they are given."""
        changes: dict[str, Any] = {"max_parallel": max_parallel} if max_parallel else {}
        changes |= {"priority": tuple(priority)} if priority else {}
        read = self.read_recipe
        return replace(self, read_recipe=lambda: read().model_copy(update=changes), every_seconds=every_seconds)


class Planner(Protocol):
    """Looks at what there is to judge, again and again.

    ``skipped`` holds the steps that are damaged, with the reason; ``is_complete``: nothing more will come.
    """

    skipped: dict[int, str]
    is_complete: bool

    def plan(
        self, recipe: EvaluateRecipe, *, is_watching: bool = False, with_retired: bool = False
    ) -> list[PlannedEvaluation]:
        """Everything that the suite asks for of what there is now.

        While a run is watched, its last checkpoint is known only once the run is complete. *with_retired*: also of
        checkpoints that retention removed. Raises InputError when a dataset of a task is missing.
        """

    @property
    def is_empty(self) -> bool:
        """True when there was nothing to judge, as of the last plan."""

    def forget(self, step: int | None) -> None:
        """Check the checkpoint of *step* again at the next plan: something was wrong with it."""

    def report_to(self, progress: Progress) -> None:
        """Send messages to *progress* from now on; the next plan reports again what was skipped so far."""


@dataclass(frozen=True)
class CheckedRequest:
    """A request that could be planned: the recipe as it was read, and the planner that checked the checkpoints."""

    recipe: EvaluateRecipe
    planner: Planner


def make_planner(workspace: Store, name: str, progress: Progress) -> Planner:
    """The planner of the run *name*, or of the imported weights *name*. Raises InputError when there is neither."""
    try:
        return RunPlanner(workspace, name, progress)
    except InputError as error:
        card = read_imported_card(workspace, name)
        if card is None:
            known = ", ".join([*list_runs(workspace), *(weights.name for weights in list_imported_cards(workspace))])
            raise InputError(error.message, f"there are: {known}" if known else error.way_out) from None
        return WeightsPlanner(workspace, card)


class RunPlanner:
    """See Planner: the checkpoints of a run. A checkpoint that was complete once is not checked again."""

    def __init__(self, workspace: Store, run: str, progress: Progress) -> None:
        self._card = card = read_run_card(workspace, run)
        self.skipped: dict[int, str] = {}
        self.is_complete = False
        self._workspace, self._run, self._progress = workspace, run, progress
        self._transform: dict[str, Any] = card.recipe["transform"]
        self._checkpoints: dict[int, CheckpointCard] = {}  # the complete ones, by step
        self._doubted: set[int] = set()  # steps that are checked again at the next plan

    def plan(
        self, recipe: EvaluateRecipe, *, is_watching: bool = False, with_retired: bool = False
    ) -> list[PlannedEvaluation]:
        """See Planner."""
        self._refresh()
        retired = list_retired_cards(self._workspace, self._run) if with_retired else []
        cards = {card.step: card for card in retired} | self._checkpoints
        model_refs = [self._model_ref(card) for _, card in sorted(cards.items())]
        return _plan(self._workspace, model_refs, recipe, is_complete=self.is_complete or not is_watching)

    @property
    def is_empty(self) -> bool:
        """See Planner."""
        return not self._checkpoints

    def forget(self, step: int | None) -> None:
        """See Planner."""
        if step is not None:
            self._doubted.add(step)

    def report_to(self, progress: Progress) -> None:
        """See Planner."""
        self._progress = progress
        self.skipped.clear()

    def _refresh(self) -> None:
        steps = list_steps(self._workspace, self._run)
        for step in sorted(set(self._checkpoints) - set(steps)):
            self._progress.message(f"checkpoint of step {step} is gone; what was not evaluated of it is left out")
            del self._checkpoints[step]
        for step in steps:
            if step not in self._checkpoints or step in self._doubted:
                self._check_step(step)
        self._doubted.clear()
        self.is_complete = extended(self._workspace, self._card) in steps

    def _check_step(self, step: int) -> None:
        try:
            card = read_checkpoint_card(self._workspace, self._run, step)
            problem = check_complete(self._workspace, card)
        except DamageError as error:
            card, problem = None, error.message
        except InputError:
            return  # it was removed just now
        if card is not None and not problem:
            self._checkpoints[step] = card
            self.skipped.pop(step, None)
            return
        self._checkpoints.pop(step, None)
        if self.skipped.get(step) != problem:
            self.skipped[step] = problem or ""
            self._progress.message(f"checkpoint of step {step} is skipped: {problem}")

    def _model_ref(self, card: CheckpointCard) -> ModelRef:
        key = f"{step_prefix(self._run, card.step)}/{card.weights.name}"
        return ModelRef(card.weights.sha256, key, self._transform, card.step)


class WeightsPlanner:
    """See Planner: imported weights. *is_stored* False: their file is to be stored later, so it is not looked for."""

    is_complete = True
    is_empty = False

    def __init__(self, workspace: Store, card: ImportedCard, *, is_stored: bool = True) -> None:
        self.skipped: dict[int, str] = {}
        self._workspace, self._card, self._is_stored = workspace, card, is_stored

    def plan(
        self, recipe: EvaluateRecipe, *, is_watching: bool = False, with_retired: bool = False
    ) -> list[PlannedEvaluation]:
        """See Planner. Raises InputError also when the weights are gone."""
        del is_watching  # they do not change
        card = self._card
        if self._is_stored and not with_retired:
            info = self._workspace.head(card.weights_key)
            if info is None or info.num_bytes != card.weights.num_bytes:
                raise InputError(f"the weights of {card.name!r} are not stored whole", f"add --weights {card.source}")
        model_ref = ModelRef(card.weights.sha256, card.weights_key, card.transform, None)
        return _plan(self._workspace, [model_ref], recipe, is_complete=True)

    def forget(self, step: int | None) -> None:
        """See Planner: nothing is remembered."""

    def report_to(self, progress: Progress) -> None:
        """See Planner: there are no messages."""


def _plan(
    workspace: Store, model_refs: list[ModelRef], recipe: EvaluateRecipe, *, is_complete: bool
) -> list[PlannedEvaluation]:
    names = {name for task in recipe.tasks.values() for name in (task.train, task.test)}
    digests = {name: read_dataset_card(workspace, name).digest for name in sorted(names)}
    for name, task in recipe.tasks.items():
        refuse_leak(workspace, name, task)
    return plan_evaluations(model_refs, recipe, digests, is_complete=is_complete)


def refuse_empty(planner: Planner) -> None:
    """Raise InputError when there was nothing to judge, as of the last plan."""
    if planner.is_empty:
        raise InputError("there is no whole checkpoint yet", "pretrain the run first")


def plan_all(
    workspace: Store,
    run: str,
    recipes: Iterable[EvaluateRecipe],
    *,
    with_retired: bool = False,
    planner: Planner | None = None,
) -> list[PlannedEvaluation]:
    """What the suites together ask for, each evaluation once; *run* may be the name of imported weights.

    *with_retired*: also of checkpoints that retention removed. *planner*: use this one instead of the run's.
    """
    planner = planner or make_planner(workspace, run, Silent())
    planned: dict[str, PlannedEvaluation] = {}
    for recipe in recipes:
        for evaluation in planner.plan(recipe, with_retired=with_retired):
            planned.setdefault(evaluation.id, evaluation)
    return list(planned.values())


def group_by_state(planned: Iterable[PlannedEvaluation], ledger: Ledger) -> dict[State, list[PlannedEvaluation]]:
    """*planned* by state, as of the ledger's last refresh; every state is a key."""
    now, cancelled = time.time(), Patterns(ledger.cancelled)
    groups: dict[State, list[PlannedEvaluation]] = {
        state: [] for state in ("due", "waiting", "running", "done", "failed", "cancelled")
    }
    for evaluation in planned:
        groups[state_of(evaluation, ledger.view, cancelled, now)].append(evaluation)
    return groups


def store_suite(workspace: Store, run: str, name: str, recipe: EvaluateRecipe) -> None:
    """Remember what *run* is judged on as suite *name*; one of the same name is replaced."""
    data = StoredSuite(run=run, name=name, recipe=recipe.model_dump(mode="json")).to_json()
    workspace.put(f"{suite_prefix(run)}{name}.json", data)


def stored_suites(workspace: Store, run: str) -> dict[str, EvaluateRecipe]:
    """The suites of *run* by name. One that this release cannot read is left out."""
    suites = {}
    for info in list(workspace.list(suite_prefix(run))):
        try:
            stored = parse_record(StoredSuite, workspace.read(info.key), info.key)
            suites[stored.name] = build(EvaluateRecipe, stored.recipe, info.key)
        except (FileNotFoundError, DamageError, RecipeError):
            continue
    return suites
