"""Commands by the names of evaluations: redo, invalidate, retry; and how it stands with everything."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from pipeline.base.errors import InputError
from pipeline.base.progress import Silent
from pipeline.base.store import Store
from pipeline.evaluate.due import Patterns, Planned, standing
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.ledger_view import State
from pipeline.evaluate.scheduler.planning import Planner, planner_of
from pipeline.evaluate.suite import EvaluateRecipe


def plan_all(
    workspace: Store,
    run: str,
    recipes: Iterable[EvaluateRecipe],
    *,
    with_retired: bool = False,
    planner: Planner | None = None,
) -> list[Planned]:
    """What the suites together ask for, each evaluation once; *run* may be the name of imported weights.

    *with_retired*: also of what is there no more. *planner*: of what is not there yet, instead of the run.
    """
    planner = planner or planner_of(workspace, run, Silent())
    found: dict[str, Planned] = {}
    for recipe in recipes:
        for item in planner.plan(recipe, with_retired=with_retired):
            found.setdefault(item.id, item)
    return list(found.values())


def matching(planned: Iterable[Planned], patterns: Sequence[str]) -> list[Planned]:
    """Those whose name matches one of *patterns*. Raises InputError for a pattern that matches nothing."""
    items = list(planned)
    for pattern in patterns:
        one = Patterns([pattern])
        if not any(one.match(item.name) for item in items):
            names = "; ".join(sorted({item.name for item in items})[:3]) or "none"
            raise InputError(f"no evaluation is called {pattern!r}", f"names are like: {names}")
    wanted = Patterns(patterns)
    return [item for item in items if wanted.match(item.name)]


def by_state(planned: Iterable[Planned], ledger: Ledger) -> dict[State, list[Planned]]:
    """How it stands with each of *planned*, as of the ledger's last refresh."""
    now, unwanted = time.time(), Patterns(ledger.cancelled)
    found: dict[State, list[Planned]] = {
        state: [] for state in ("due", "waiting", "running", "done", "failed", "cancelled")
    }
    for item in planned:
        found[standing(item, ledger.view, unwanted, now)].append(item)
    return found


def has_traces(ledger: Ledger, item: Planned) -> bool:
    """True when there is something of the current generation that can be made void."""
    entry = ledger.view.get(item.id)
    return entry is not None and (entry.is_recorded or entry.failure is not None or entry.claim is not None)
