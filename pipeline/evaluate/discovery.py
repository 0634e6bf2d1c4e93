"""From what is there to what a suite asks for: the checkpoints of a run, or imported weights."""

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


class Planner(Protocol):
    """Looks at what there is to judge, again and again.

    ``skipped`` holds the steps that are damaged, with the reason; ``is_complete``: nothing more will come.
    """

    skipped: dict[int, str]
    is_complete: bool

    def plan(
        self, recipe: EvaluateRecipe, *, is_watching: bool = False, with_retired: bool = False
    ) -> list[PlannedEvaluation]:
        """Everything that the suite asks for on what is there now.

        While a run is watched, its last checkpoint is known only once the run is complete. *with_retired*: also on
        what is not there any more. Raises InputError when a dataset of a task is missing.
        """

    @property
    def is_empty(self) -> bool:
        """True when there was nothing to judge, as of the last plan."""

    def forget(self, step: int | None) -> None:
        """Look at *step* anew next time: something was wrong with it."""


def planner_of(workspace: Store, name: str, progress: Progress) -> Planner:
    """Of the run *name*, or of the imported weights *name*. Raises InputError when there is neither."""
    try:
        return RunPlanner(workspace, name, progress)
    except InputError as error:
        card = read_imported_card(workspace, name)
        if card is None:
            known = ", ".join([*list_runs(workspace), *(one.name for one in list_imported_cards(workspace))])
            raise InputError(error.what, f"there are: {known}" if known else error.way_out) from None
        return WeightsPlanner(workspace, card)


def refuse_empty(planner: Planner) -> None:
    """Raise InputError when there was nothing to judge, as of the last plan."""
    if planner.is_empty:
        raise InputError("there is no whole checkpoint yet", "pretrain the run first")


class RunPlanner:
    """See Planner: the checkpoints of a run; what it has found whole it does not look at twice."""

    def __init__(self, workspace: Store, run: str, progress: Progress) -> None:
        self._card = card = read_run_card(workspace, run)
        self.skipped: dict[int, str] = {}
        self.is_complete = False
        self._workspace, self._run, self._progress = workspace, run, progress
        self._transform: dict[str, Any] = card.recipe["transform"]
        self._whole: dict[int, CheckpointCard] = {}
        self._doubted: set[int] = set()  # found whole, and to be looked at once more

    def plan(
        self, recipe: EvaluateRecipe, *, is_watching: bool = False, with_retired: bool = False
    ) -> list[PlannedEvaluation]:
        """See Planner."""
        self._look()
        retired = list_retired_cards(self._workspace, self._run) if with_retired else []
        cards = {card.step: card for card in retired} | self._whole
        subjects = [self._subject(card) for _, card in sorted(cards.items())]
        return _plan(self._workspace, subjects, recipe, is_complete=self.is_complete or not is_watching)

    @property
    def is_empty(self) -> bool:
        """See Planner."""
        return not self._whole

    def forget(self, step: int | None) -> None:
        """See Planner."""
        if step is not None:
            self._doubted.add(step)

    def _look(self) -> None:
        steps = list_steps(self._workspace, self._run)
        for step in sorted(set(self._whole) - set(steps)):
            self._progress.say(f"checkpoint of step {step} is gone; what was not evaluated of it is left out")
            del self._whole[step]
        for step in steps:
            if step not in self._whole or step in self._doubted:
                self._look_at(step)
        self._doubted.clear()
        self.is_complete = extended(self._workspace, self._card) in steps

    def _look_at(self, step: int) -> None:
        try:
            card = read_checkpoint_card(self._workspace, self._run, step)
            problem = check_complete(self._workspace, card)
        except DamageError as error:
            card, problem = None, error.what
        except InputError:
            return  # it was removed just now
        if card is not None and not problem:
            self._whole[step] = card
            self.skipped.pop(step, None)
            return
        self._whole.pop(step, None)
        if self.skipped.get(step) != problem:
            self.skipped[step] = problem or ""
            self._progress.say(f"checkpoint of step {step} is skipped: {problem}")

    def _subject(self, card: CheckpointCard) -> ModelRef:
        key = f"{step_prefix(self._run, card.step)}/{card.weights.name}"
        return ModelRef(card.weights.sha256, key, self._transform, card.step)


class WeightsPlanner:
    """See Planner: imported weights. *is_kept* False: they are to be stored later, and this is only to tell."""

    is_complete = True
    is_empty = False

    def __init__(self, workspace: Store, card: ImportedCard, *, is_kept: bool = True) -> None:
        self.skipped: dict[int, str] = {}
        self._workspace, self._card, self._is_kept = workspace, card, is_kept

    def plan(
        self, recipe: EvaluateRecipe, *, is_watching: bool = False, with_retired: bool = False
    ) -> list[PlannedEvaluation]:
        """See Planner. Raises InputError also when the weights are gone."""
        del is_watching  # they do not change
        card = self._card
        if self._is_kept and not with_retired:
            found = self._workspace.head(card.weights_key)
            if found is None or found.num_bytes != card.weights.num_bytes:
                raise InputError(f"the weights of {card.name!r} are not stored whole", f"add --weights {card.source}")
        subject = ModelRef(card.weights.sha256, card.weights_key, card.transform, None)
        return _plan(self._workspace, [subject], recipe, is_complete=True)

    def forget(self, step: int | None) -> None:
        """See Planner: nothing is remembered."""


def _plan(
    workspace: Store, subjects: list[ModelRef], recipe: EvaluateRecipe, *, is_complete: bool
) -> list[PlannedEvaluation]:
    names = {name for task in recipe.tasks.values() for name in (task.train, task.test)}
    digests = {name: read_dataset_card(workspace, name).digest for name in sorted(names)}
    for name, task in recipe.tasks.items():
        refuse_leak(workspace, name, task)
    return plan_evaluations(subjects, recipe, digests, is_complete=is_complete)


def keep_suite(workspace: Store, run: str, name: str, recipe: EvaluateRecipe) -> None:
    """Remember what *run* is judged on as suite *name*; one of the same name is replaced."""
    data = StoredSuite(run=run, name=name, recipe=recipe.model_dump(mode="json")).to_json()
    workspace.put(f"{suite_prefix(run)}{name}.json", data)


def kept_suites(workspace: Store, run: str) -> dict[str, EvaluateRecipe]:
    """The suites of *run* by name. One that this release cannot read is left out."""
    found = {}
    for info in list(workspace.list(suite_prefix(run))):
        try:
            stored = parse_record(StoredSuite, workspace.read(info.key), info.key)
            found[stored.name] = build(EvaluateRecipe, stored.recipe, info.key)
        except (FileNotFoundError, DamageError, RecipeError):
            continue
    return found


@dataclass(frozen=True)
class EvaluationRequest:
    """A run, and the suite that it is to be judged on; *every_seconds*: look again so often, until it is complete.

    *weights*: not a run, but these; *run* is their name then.
    """

    run: str
    suite: str
    read_recipe: ReadRecipe
    every_seconds: float | None = None
    weights: Weights | None = None

    def planner(self, workspace: Store) -> Planner:
        """Tells what there is to judge. Raises InputError when there is no such run."""
        if self.weights is not None:
            return WeightsPlanner(workspace, self.weights.card, is_kept=False)
        return planner_of(workspace, self.run, Silent())

    def with_options(
        self, max_parallel: int | None, priority: list[str] | None, every_seconds: float | None
    ) -> EvaluationRequest:
        """The same, with what the command line says about how it is run."""
        given: dict[str, Any] = {"max_parallel": max_parallel} if max_parallel else {}
        given |= {"priority": tuple(priority)} if priority else {}
        read = self.read_recipe
        return replace(self, read_recipe=lambda: read().model_copy(update=given), every_seconds=every_seconds)


def plan_all(
    workspace: Store,
    run: str,
    recipes: Iterable[EvaluateRecipe],
    *,
    with_retired: bool = False,
    planner: Planner | None = None,
) -> list[PlannedEvaluation]:
    """What the suites together ask for, each evaluation once; *run* may be the name of imported weights.

    *with_retired*: also of what is there no more. *planner*: of what is not there yet, instead of the run.
    """
    planner = planner or planner_of(workspace, run, Silent())
    found: dict[str, PlannedEvaluation] = {}
    for recipe in recipes:
        for item in planner.plan(recipe, with_retired=with_retired):
            found.setdefault(item.id, item)
    return list(found.values())


def by_state(planned: Iterable[PlannedEvaluation], ledger: Ledger) -> dict[State, list[PlannedEvaluation]]:
    """How it stands with each of *planned*, as of the ledger's last refresh."""
    now, unwanted = time.time(), Patterns(ledger.cancelled)
    found: dict[State, list[PlannedEvaluation]] = {
        state: [] for state in ("due", "waiting", "running", "done", "failed", "cancelled")
    }
    for item in planned:
        found[state_of(item, ledger.view, unwanted, now)].append(item)
    return found
