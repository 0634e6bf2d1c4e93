"""Evaluation as a stage: what is due for the checkpoints of a run is done, each thing recorded exactly once."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.base.errors import FailedError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.evaluate.scheduler.loop import Outcome, Scheduler
from pipeline.evaluate.scheduler.suites import keep_suite
from pipeline.evaluate.suite import EvaluateRecipe


def evaluate(
    workspace: Store,
    run: str,
    read_recipe: Callable[[], EvaluateRecipe],
    progress: Progress,
    every_seconds: float | None = None,
    suite: str = "suite",
) -> Outcome:
    """Do what is due for *run*. Needs a ray cluster that is connected.

    With *every_seconds*, look for new checkpoints so often until the run is complete; *read_recipe* is asked each
    time. One failing evaluation does not stop the others. Raises InputError when the run has no checkpoint or a
    dataset is missing.
    """

    def keep(recipe: EvaluateRecipe) -> None:
        keep_suite(workspace, run, suite, recipe)

    return Scheduler(workspace, run, read_recipe, progress, every_seconds, keep).run()


def check_evaluated(outcome: Outcome) -> None:
    """Raise FailedError when something failed, naming it."""
    if outcome.failures:
        raise FailedError(
            f"{len(outcome.failures)} of {outcome.num_planned} evaluations failed: {outcome.failures[0]}",
            "the others are recorded; mend the cause, and give the same command with --retry",
        )
