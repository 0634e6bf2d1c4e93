"""``vitpipe evaluate RUN --redo``, ``--retry``, ``--invalidate``, ``--cancel``: changes by the names of evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.discovery import EvaluationRequest, by_state, kept_suites, plan_all
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.plan import Patterns, PlannedEvaluation, due_evaluations


def matching(planned: Iterable[PlannedEvaluation], patterns: Sequence[str]) -> list[PlannedEvaluation]:
    """Those whose name matches one of *patterns*. Raises InputError for a pattern that matches nothing."""
    items = list(planned)
    for pattern in patterns:
        one = Patterns([pattern])
        if not any(one.match(item.name) for item in items):
            names = "; ".join(sorted({item.name for item in items})[:3]) or "none"
            raise InputError(f"no evaluation is called {pattern!r}", f"names are like: {names}")
    wanted = Patterns(patterns)
    return [item for item in items if wanted.match(item.name)]


def has_traces(ledger: Ledger, item: PlannedEvaluation) -> bool:
    """True when there is something of the current generation that can be made void."""
    entry = ledger.view.get(item.id)
    return entry is not None and (entry.is_recorded or entry.failure is not None or entry.claim is not None)


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


def change(workspace: Store, asked: EvaluationRequest, changes: Changes, *, dry_run: bool) -> dict[str, Any]:
    """Do what is asked, or with *dry_run* only find what it is about; the names, by what is done with them.

    Names are looked for in the suite that is asked for, and in those that the run had before. Raises InputError for a
    pattern to redo or to invalidate that matches nothing, or one to uncancel that is not there.
    """
    run, recipes = asked.run, [asked.read_recipe(), *kept_suites(workspace, asked.run).values()]
    planned = plan_all(workspace, run, recipes, with_retired=True, planner=asked.planner(workspace))
    ledger = Ledger(workspace, run)
    ledger.refresh()
    found: dict[str, Any] = {"run": run}
    void: dict[str, PlannedEvaluation] = {}
    for what, patterns in (("redo", changes.redo), ("invalidate", changes.invalidate)):
        if patterns:
            items = matching(planned, patterns)
            found[what] = [item.name for item in items]
            void |= {item.id: item for item in items if has_traces(ledger, item)}
    if changes.retry:
        items = by_state(planned, ledger)["failed"]
        found["retry"] = [item.name for item in items]
        void |= {item.id: item for item in items}
    if changes.cancel or changes.uncancel:
        found |= _change_cancelled(ledger, planned, changes, dry_run)
    if not dry_run:
        for item in void.values():
            ledger.invalidate(item.id, changes.reason or "asked for on the command line")
    return found


def what_is_due(workspace: Store, asked: EvaluationRequest) -> dict[str, Any]:
    """How it stands with what the suite asks for: names by state, what is due in the order of its start."""
    run, recipe = asked.run, asked.read_recipe()
    planned = plan_all(workspace, run, [recipe], planner=asked.planner(workspace))
    ledger = Ledger(workspace, run)
    ledger.refresh()
    states = by_state(planned, ledger)
    first = due_evaluations(states["due"], ledger.view, float("inf"), ledger.cancelled, recipe.priority)
    names = {state: [item.name for item in items] for state, items in states.items()}
    return {"run": run, "planned": len(planned)} | names | {"due": [item.name for item in first]}


def _change_cancelled(
    ledger: Ledger, planned: list[PlannedEvaluation], changes: Changes, dry_run: bool
) -> dict[str, Any]:
    unknown = [pattern for pattern in changes.uncancel if pattern not in ledger.cancelled]
    if unknown:
        there = "; ".join(ledger.cancelled) or "nothing"
        raise InputError(f"{unknown[0]!r} is not cancelled", f"cancelled is: {there}")

    def changed(before: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(pattern for pattern in (*before, *changes.cancel) if pattern not in changes.uncancel)

    ledger.cancelled = changed(ledger.cancelled) if dry_run else ledger.change_cancelled(changed)
    names = [item.name for item in by_state(planned, ledger)["cancelled"]]
    return {"cancelled_patterns": list(ledger.cancelled), "cancelled": names}
