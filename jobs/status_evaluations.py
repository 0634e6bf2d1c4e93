"""How it stands with the evaluations of a workspace: by run and suite, and what is running or failed, by name."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from typing import Any

from pipeline.base.errors import VitpipeError
from pipeline.base.store import Store
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.scheduler.by_name import by_state, plan_all
from pipeline.evaluate.scheduler.suites import kept_suites
from pipeline.records.ledger import Claim, Failure, suite_prefix

Rows = list[tuple[str, ...]]
_SHOWN = 20  # lines of a table, on a terminal; --json has them all
_STATES = ("due", "waiting", "running", "done", "failed", "cancelled")


def evaluations(workspace: Store, runs: Iterable[str]) -> dict[str, Any]:
    """One listing of the ledger, and small reads of what is neither recorded nor untouched.

    *runs*: of which suites are told; names of imported weights too.
    """
    ledger, now = Ledger(workspace, ""), time.time()
    ledger.refresh()
    running, failed = [], []
    for evaluation_id, entry in sorted(ledger.view.items()):
        state = entry.state(now)
        if state == "running" and entry.claim is not None:
            running.append(_running(evaluation_id, entry.claim))
        elif state in ("failed", "waiting", "due") and entry.failure is not None:
            failed.append(_failed(evaluation_id, entry.failure, state))
    return {
        "recorded": sum(entry.is_recorded for entry in ledger.view.values()),
        "running": running,
        "failed": [one for one in failed if one["kind"] != "released"],
        "suites": [suite for run in runs for suite in _suites(workspace, ledger, run)],
    }


def _running(evaluation_id: str, claim: Claim) -> dict[str, Any]:
    who = f"{claim.owner.place.partition(' ')[0]}:{claim.owner.pid}"
    return {"id": evaluation_id, "run": claim.run, "name": claim.name, "who": who, "since": _moment(claim.since)}


def _failed(evaluation_id: str, failure: Failure, state: str) -> dict[str, Any]:
    return {
        "id": evaluation_id,
        "run": failure.run,
        "name": failure.name,
        "kind": failure.kind,
        "reason": failure.reason,
        "tries": failure.errors + failure.losses,
        "at": _moment(failure.at),
        "state": state,
        "retry_after": None if failure.retry_after is None else _moment(failure.retry_after),
    }


def _suites(workspace: Store, ledger: Ledger, run: str) -> list[dict[str, Any]]:
    """The suites that *run* was last asked to be judged on, and the names of their evaluations by state."""
    if not any(True for _ in workspace.list(suite_prefix(run))):
        return []
    seen = Ledger(workspace, run)
    seen.view = ledger.view
    seen.refresh_cancelled()
    found = []
    for name, recipe in kept_suites(workspace, run).items():
        row: dict[str, Any] = {"run": run, "suite": name}
        try:
            states = by_state(plan_all(workspace, run, [recipe]), seen)
        except VitpipeError as error:  # a dataset of it is gone
            found.append(row | {"problem": str(error)})
            continue
        found.append(row | {state: [item.name for item in states[state]] for state in _STATES})  # type: ignore[index]
    return found


def describe_evaluations(found: dict[str, Any]) -> list[tuple[str, list[str], Rows]]:
    """As tables: (title, columns, rows)."""
    suites: Rows = [
        (one["run"], one["suite"], *(str(len(one.get(state, []))) for state in _STATES)) for one in found["suites"]
    ]
    title = f"Evaluations: {found['recorded']} recorded"
    tables = [(title, ["run", "suite", *_STATES], suites)]
    problems: Rows = [(one["run"], one["suite"], one["problem"]) for one in found["suites"] if "problem" in one]
    if problems:
        tables.append(("Suites that cannot be planned", ["run", "suite", "problem"], problems))
    running: Rows = [(one["run"], one["name"], one["who"], one["since"]) for one in found["running"]]
    failed: Rows = [
        (one["run"], one["name"], str(one["tries"]), one["retry_after"] or "never by itself", one["reason"])
        for one in found["failed"]
    ]
    if running:
        tables.append((_title("Running", running), ["run", "evaluation", "who", "since"], running[:_SHOWN]))
    if failed:
        columns = ["run", "evaluation", "tries", "next try", "reason"]
        tables.append((_title("Failed", failed), columns, failed[:_SHOWN]))
    queue: Rows = [(one["run"], name) for one in found["suites"] for name in one.get("due", [])]
    if queue:
        tables.append((_title("Queue", queue), ["run", "evaluation"], queue[:_SHOWN]))
    return tables


def _title(what: str, rows: Rows) -> str:
    return f"{what}: {len(rows)}" + (f", the first {_SHOWN}" if len(rows) > _SHOWN else "")


def _moment(seconds: float) -> str:
    """As people of any time zone read it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
