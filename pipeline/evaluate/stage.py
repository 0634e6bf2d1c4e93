"""Evaluation as a stage: what is due for the checkpoints of a run is done, each thing recorded exactly once."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.base.errors import FailedError
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.evaluate.discovery import EvaluationRequest, keep_suite, plan_all, refuse_empty
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.scheduler import Outcome, Scheduler


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


def _check_planned(workspace: Store, asked: EvaluationRequest) -> None:
    """Refuse before anything starts what the scheduler would: datasets that are missing or leak, nothing to judge.

    What it learns of leaks is remembered, so that the scheduler need not read the indexes again.
    """
    planner = asked.planner(workspace)
    plan_all(workspace, asked.run, [asked.read_recipe()], planner=planner)
    if asked.every_seconds is None:
        refuse_empty(planner)


def take_weights(workspace: Store, asked: EvaluationRequest) -> None:
    """Store the weights that are asked for in *workspace*, if any, once it is known that the suite can be planned."""
    if asked.weights is not None:
        from pipeline.evaluate.imported_weights import keep_weights  # noqa: PLC0415

        plan_all(workspace, asked.run, [asked.read_recipe()], planner=asked.planner(workspace))
        keep_weights(workspace, asked.weights)
