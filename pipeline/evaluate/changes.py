"""Changes by the names of evaluations: redo, retry, invalidate, cancel; and what is due, without changing anything.

``vitpipe evaluations`` has a command for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.discovery import EvaluationRequest, group_by_state, plan_all, stored_suites
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.plan import Patterns, PlannedEvaluation, due_evaluations


@dataclass(frozen=True)
class Changes:
    """Patterns of names, by what is to be done with what they match. *retry*: redo whatever failed for good."""

    redo: tuple[str, ...] = ()
    invalidate: tuple[str, ...] = ()
    cancel: tuple[str, ...] = ()
    uncancel: tuple[str, ...] = ()
    retry: bool = False
    reason: str = ""

    @property
    def only_marks(self) -> bool:
        """True when nothing is to be run afterwards."""
        return bool(self.invalidate or self.cancel or self.uncancel) and not (self.redo or self.retry)


def apply_changes(workspace: Store, request: EvaluationRequest, changes: Changes, *, dry_run: bool) -> dict[str, Any]:
    """Make *changes*, or with *dry_run* only find what they match; the names of that, by the kind of change.

    Names are looked for in the suite of the request, and in those that the run had before. Raises InputError for a
    pattern to redo or to invalidate that matches nothing, or one to uncancel that is not cancelled.
    """
    run, recipes = request.run, [request.read_recipe(), *stored_suites(workspace, request.run).values()]
    planned = plan_all(workspace, run, recipes, with_retired=True, planner=request.planner(workspace))
    ledger = Ledger(workspace, run)
    ledger.refresh()
    report: dict[str, Any] = {"run": run}
    void: dict[str, PlannedEvaluation] = {}
    for kind, patterns in (("redo", changes.redo), ("invalidate", changes.invalidate)):
        if patterns:
            matches = matching_evaluations(planned, patterns)
            report[kind] = [evaluation.name for evaluation in matches]
            void |= {evaluation.id: evaluation for evaluation in matches if _has_records(ledger, evaluation)}
    if changes.retry:
        failed = group_by_state(planned, ledger)["failed"]
        report["retry"] = [evaluation.name for evaluation in failed]
        void |= {evaluation.id: evaluation for evaluation in failed}
    if changes.cancel or changes.uncancel:
        report |= _change_cancelled(ledger, planned, changes, dry_run)
    if not dry_run:
        for evaluation_id in void:
            ledger.invalidate(evaluation_id, changes.reason or "asked for on the command line")
    return report


def describe_due(workspace: Store, request: EvaluationRequest) -> dict[str, Any]:
    """What the suite asks for: names by state, what is due in the order in which it would start."""
    run, recipe = request.run, request.read_recipe()
    planned = plan_all(workspace, run, [recipe], planner=request.planner(workspace))
    ledger = Ledger(workspace, run)
    ledger.refresh()
    groups = group_by_state(planned, ledger)
    due = due_evaluations(groups["due"], ledger.view, float("inf"), ledger.cancelled, recipe.priority)
    names = {state: [evaluation.name for evaluation in group] for state, group in groups.items()}
    return {"run": run, "planned": len(planned)} | names | {"due": [evaluation.name for evaluation in due]}


def matching_evaluations(planned: Iterable[PlannedEvaluation], patterns: Sequence[str]) -> list[PlannedEvaluation]:
    """Those whose name matches one of *patterns*. Raises InputError for a pattern that matches nothing."""
    planned = list(planned)
    for text in patterns:
        pattern = Patterns([text])
        if not any(pattern.match(evaluation.name) for evaluation in planned):
            names = "; ".join(sorted({evaluation.name for evaluation in planned})[:3]) or "none"
            raise InputError(f"no evaluation is called {text!r}", f"names are like: {names}")
    any_pattern = Patterns(patterns)
    return [evaluation for evaluation in planned if any_pattern.match(evaluation.name)]


def _has_records(ledger: Ledger, evaluation: PlannedEvaluation) -> bool:
    """True when there is something of the current generation that can be made void."""
    state = ledger.view.get(evaluation.id)
    return state is not None and (state.is_recorded or state.failure is not None or state.claim is not None)


def _change_cancelled(
    ledger: Ledger, planned: list[PlannedEvaluation], changes: Changes, dry_run: bool
) -> dict[str, Any]:
    unknown = [pattern for pattern in changes.uncancel if pattern not in ledger.cancelled]
    if unknown:
        known = "; ".join(ledger.cancelled) or "nothing"
        raise InputError(f"{unknown[0]!r} is not cancelled", f"cancelled is: {known}")

    def changed(before: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(pattern for pattern in (*before, *changes.cancel) if pattern not in changes.uncancel)

    ledger.cancelled = changed(ledger.cancelled) if dry_run else ledger.change_cancelled(changed)
    names = [evaluation.name for evaluation in group_by_state(planned, ledger)["cancelled"]]
    return {"cancelled_patterns": list(ledger.cancelled), "cancelled": names}
