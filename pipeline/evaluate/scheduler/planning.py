"""From the checkpoints of a run to what its suite asks for."""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import DamageError, InputError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.checkpoints.save import check_whole
from pipeline.evaluate.due import Planned, plan_evaluations
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.suite import EvaluateRecipe
from pipeline.records.dataset import read_dataset_card
from pipeline.records.run import (
    CheckpointCard,
    list_retired_cards,
    list_steps,
    read_checkpoint_card,
    read_run_card,
    run_prefix,
    step_prefix,
)


class RunPlanner:
    """Looks at the checkpoints of a run, again and again; what it has found whole it does not look at twice.

    ``skipped`` holds the steps that are damaged, with the reason; ``is_complete`` whether the last step is there.
    """

    def __init__(self, workspace: Store, run: str, progress: Progress) -> None:
        card = read_run_card(workspace, run)
        self.skipped: dict[int, str] = {}
        self.is_complete = False
        self._workspace, self._run, self._progress = workspace, run, progress
        self._transform: dict[str, Any] = card.recipe["transform"]
        self._steps = int(card.recipe["steps"])
        self._whole: dict[int, CheckpointCard] = {}

    def plan(self, recipe: EvaluateRecipe, *, is_watching: bool = False, with_retired: bool = False) -> list[Planned]:
        """Everything that the suite asks for on the whole checkpoints that there are now.

        While a run is watched, its last checkpoint is known only once the run is complete. *with_retired*: also on
        those that retention removed. Raises InputError when a dataset of a task is missing.
        """
        self._look()
        retired = list_retired_cards(self._workspace, self._run) if with_retired else []
        cards = {card.step: card for card in retired} | self._whole
        subjects = [self._subject(card) for _, card in sorted(cards.items())]
        names = {name for task in recipe.tasks.values() for name in (task.train, task.test)}
        digests = {name: read_dataset_card(self._workspace, name).digest for name in sorted(names)}
        return plan_evaluations(subjects, recipe, digests, is_complete=self.is_complete or not is_watching)

    @property
    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, as of the last plan."""
        return sorted(self._whole)

    def forget(self, step: int | None) -> None:
        """Look at *step* anew next time: something was wrong with it."""
        if step is not None:
            self._whole.pop(step, None)

    def _look(self) -> None:
        steps = list_steps(self._workspace, self._run)
        for step in sorted(set(self._whole) - set(steps)):
            self._progress.say(f"checkpoint of step {step} is gone; what was not evaluated of it is left out")
            del self._whole[step]
        for step in steps:
            if step not in self._whole:
                self._look_at(step)
        extended = [_extended(info.key) for info in self._workspace.list(f"{run_prefix(self._run)}/extend-")]
        self.is_complete = max([self._steps, *extended]) in steps

    def _look_at(self, step: int) -> None:
        try:
            card = read_checkpoint_card(self._workspace, self._run, step)
            problem = check_whole(self._workspace, card)
        except DamageError as error:
            card, problem = None, error.what
        except InputError:
            return  # it was removed just now
        if card is not None and not problem:
            self._whole[step] = card
            self.skipped.pop(step, None)
        elif self.skipped.get(step) != problem:
            self.skipped[step] = problem or ""
            self._progress.say(f"checkpoint of step {step} is skipped: {problem}")

    def _subject(self, card: CheckpointCard) -> Subject:
        key = f"{step_prefix(self._run, card.step)}/{card.weights.name}"
        return Subject(card.weights.sha256, key, self._transform, card.step)


def _extended(key: str) -> int:
    """The steps of ``runs/<name>/extend-<steps>.json``: a run may be made longer after its card was written."""
    number = key.rpartition("extend-")[2].removesuffix(".json")
    return int(number) if number.isdigit() else 0
