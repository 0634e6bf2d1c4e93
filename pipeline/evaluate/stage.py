"""Evaluation as a stage: check a request, do what is due, each evaluation recorded exactly once, raise what failed.

::

    check_request --CheckedRequest--> evaluate --ScheduleSummary--> raise_failed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.errors import FailedError
from pipeline.base.progress import Progress, Silent
from pipeline.base.store.protocol import Store
from pipeline.evaluate.discovery import (
    CheckedRequest,
    EvaluationRequest,
    make_planner,
    plan_all,
    refuse_empty,
    store_suite,
)
from pipeline.evaluate.recipe import EvaluateRecipe

if TYPE_CHECKING:  # it brings ray and torch along
    from pipeline.evaluate.scheduler import ScheduleSummary

# Imports in functions here keep ray and torch out of a request that is refused.


def import_requested_weights(workspace: Store, request: EvaluationRequest) -> None:
    """Store the weights of *request* in *workspace*, if it has any, once it is known that its suite can be planned."""
    if request.weights is not None:
        from pipeline.evaluate.imported_weights import store_weights  # noqa: PLC0415

        plan_all(workspace, request.run, [request.read_recipe()], planner=request.planner(workspace))
        store_weights(workspace, request.weights)


def check_request(workspace: Store, request: EvaluationRequest) -> CheckedRequest:
    """Refuse before anything starts what the scheduler would: datasets that are missing or leak, nothing to judge.

    What it learns of leaks is remembered in this process, so that the scheduler need not read the indexes again. The
    weights of the request must be stored already.
    """
    recipe, planner = request.read_recipe(), make_planner(workspace, request.run, Silent())
    planner.plan(recipe)
    if request.every_seconds is None:
        refuse_empty(planner)
    return CheckedRequest(recipe, planner)


def evaluate(
    workspace: Store, request: EvaluationRequest, progress: Progress, checked: CheckedRequest | None = None
) -> ScheduleSummary:
    """Do what is due for the run of *request*. Needs a Ray cluster that is connected.

    With ``every_seconds``, look for new checkpoints so often until the run is complete; ``read_recipe`` is called each
    time. *checked*: what ``check_request`` returned, so that checkpoints are not checked twice. A failing evaluation
    does not stop the others. Raises InputError when the run has no checkpoint or a dataset is missing.
    """
    from pipeline.evaluate.scheduler import Scheduler  # noqa: PLC0415

    def on_suite(recipe: EvaluateRecipe) -> None:
        store_suite(workspace, request.run, request.suite, recipe)

    read, every = request.read_recipe, request.every_seconds
    return Scheduler(workspace, request.run, read, progress, every, on_suite, checked).run()


def raise_failed(summary: ScheduleSummary) -> None:
    """Raise FailedError when something failed, naming it."""
    if summary.failures:
        raise FailedError(
            f"{len(summary.failures)} of {summary.num_planned} evaluations failed: {summary.failures[0]}",
            "the others are recorded; mend the cause, then: vitpipe evaluations retry",
        )
