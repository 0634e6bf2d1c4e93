"""``vitpipe status``: what a workspace holds, and how far each thing is."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from typing import Any

from jobs.base.console import print_result, print_table
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, open_workspace
from pipeline.base.errors import DamageError, InputError, VitpipeError
from pipeline.base.store.protocol import Store
from pipeline.base.units import format_bytes
from pipeline.evaluate.discovery import group_by_state, plan_all, stored_suites
from pipeline.evaluate.ledger import Ledger, State
from pipeline.records.dataset import list_datasets, read_dataset_card
from pipeline.records.imported import ImportedCard, list_imported_cards
from pipeline.records.ledger import Claim, Failure, suite_prefix
from pipeline.records.run import extended, list_steps, read_checkpoint_card, read_run_card

Rows = list[tuple[str, ...]]
Table = tuple[str, list[str], Rows]  # title, columns, rows
_SHOWN = 20  # lines of a table, on a terminal; --json has them all
STATES: tuple[State, ...] = ("due", "waiting", "running", "done", "failed", "cancelled")


def status(
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a workspace holds: datasets, runs and their checkpoints, imported weights, evaluations, reports."""
    values = workspace_status(open_workspace(workspace, endpoint))

    def show() -> None:
        for title, columns, rows in status_tables(values):
            print_table(title, columns, rows)

    print_result(as_json, values, show)


def status_tables(values: dict[str, Any]) -> list[Table]:
    """What ``workspace_status`` returned."""
    datasets: Rows = [
        (
            row["name"],
            f"{row['samples']:,}",
            str(row["rejected"]),
            str(row["classes"]),
            str(row["shards"]),
            format_bytes(row["bytes"]),
        )
        for row in values["datasets"]
    ]
    runs: Rows = [
        (row["name"], row["dataset"], str(row["steps"]), ", ".join(map(str, row["checkpoints"])) or "-", row["state"])
        for row in values["runs"]
    ]
    tables: list[Table] = [
        ("Datasets", ["name", "samples", "rejected", "classes", "shards", "size"], datasets),
        ("Runs", ["name", "dataset", "steps", "checkpoints", "state"], runs),
    ]
    imported: Rows = [
        (row["name"], row["weights_digest"][:12], format_bytes(row["bytes"]), row["source"])
        for row in values["imported"]
    ]
    if imported:
        tables.append(("Imported weights", ["name", "digest", "size", "from"], imported))
    tables += evaluations_tables(values["evaluations"])
    if values["reports"]:
        tables.append(("Reports", ["page"], [(page,) for page in values["reports"]]))
    return tables


def evaluations_tables(values: dict[str, Any]) -> list[Table]:
    """What ``evaluations_status`` returned."""
    suites: Rows = [
        (row["run"], row["suite"], *(str(len(row.get(state, []))) for state in STATES)) for row in values["suites"]
    ]
    tables: list[Table] = [(f"Evaluations: {values['recorded']} recorded", ["run", "suite", *STATES], suites)]
    problems: Rows = [(row["run"], row["suite"], row["problem"]) for row in values["suites"] if "problem" in row]
    if problems:
        tables.append(("Suites that cannot be planned", ["run", "suite", "problem"], problems))
    running: Rows = [(row["run"], row["name"], row["who"], row["since"]) for row in values["running"]]
    failed: Rows = [
        (row["run"], row["name"], str(row["tries"]), row["retry_after"] or "never by itself", row["reason"])
        for row in values["failed"]
    ]
    queue: Rows = [(row["run"], name) for row in values["suites"] for name in row.get("due", [])]
    listed = (
        ("Running", ["run", "evaluation", "who", "since"], running),
        ("Failed", ["run", "evaluation", "tries", "next try", "reason"], failed),
        ("Queue", ["run", "evaluation"], queue),
    )
    return tables + [(_title(kind, rows), columns, rows[:_SHOWN]) for kind, columns, rows in listed if rows]


def _title(kind: str, rows: Rows) -> str:
    return f"{kind}: {len(rows)}" + (f", the first {_SHOWN}" if len(rows) > _SHOWN else "")


def workspace_status(workspace: Store) -> dict[str, Any]:
    """Datasets, runs, imported weights, evaluations and reports."""
    keys = [info.key for prefix in ("runs/", "reports/") for info in workspace.list(prefix)]
    runs = _names(keys, "runs/", "/run.json")
    imported = list_imported_cards(workspace)
    return {
        "workspace": workspace.uri,
        "datasets": [_dataset(workspace, name) for name in list_datasets(workspace)],
        "runs": [_run(workspace, name) for name in runs],
        "imported": [_imported(card) for card in imported],
        "evaluations": evaluations_status(workspace, [*runs, *(card.name for card in imported)]),
        "reports": [
            f"{workspace.uri}/reports/{name}/report.html" for name in _names(keys, "reports/", "/summary.json")
        ],
    }


def evaluations_status(workspace: Store, runs: Iterable[str]) -> dict[str, Any]:
    """By one listing of the ledger, and small reads of what is neither recorded nor untouched.

    *runs*: those whose suites are shown; names of imported weights too.
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
        "failed": [row for row in failed if row["kind"] != "released"],
        "suites": [suite for run in runs for suite in _suites(workspace, ledger, run)],
    }


def _names(keys: list[str], prefix: str, suffix: str) -> list[str]:
    return sorted(key[len(prefix) : -len(suffix)] for key in keys if key.startswith(prefix) and key.endswith(suffix))


def _dataset(workspace: Store, name: str) -> dict[str, Any]:
    card = read_dataset_card(workspace, name)
    return {
        "name": name,
        "samples": card.num_samples,
        "rejected": card.num_rejected,
        "classes": len(card.class_names),
        "shards": card.num_shards,
        "bytes": card.num_bytes,
        "digest": card.digest,
    }


def _run(workspace: Store, name: str) -> dict[str, Any]:
    run = read_run_card(workspace, name)
    steps, damaged = list[int](), list[int]()
    for step in list_steps(workspace, name):
        (steps if _has_card(workspace, name, step) else damaged).append(step)
    total = extended(workspace, run)
    state = "complete" if total in steps else f"at step {steps[-1]}" if steps else "no checkpoint yet"
    if damaged:
        state += f"; damaged: {', '.join(map(str, damaged))}"
    return {
        "name": name,
        "dataset": run.dataset_name,
        "steps": total,
        "checkpoints": steps,
        "damaged": damaged,
        "state": state,
    }


def _has_card(workspace: Store, run: str, step: int) -> bool:
    """Whether the card can be read: status shows damage, and does not fail for it."""
    try:
        read_checkpoint_card(workspace, run, step)
    except (DamageError, InputError):
        return False
    return True


def _imported(card: ImportedCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "weights_digest": card.weights.sha256,
        "bytes": card.weights.num_bytes,
        "source": card.source,
    }


def _running(evaluation_id: str, claim: Claim) -> dict[str, Any]:
    owner = f"{claim.owner.place.partition(' ')[0]}:{claim.owner.pid}"
    return {"id": evaluation_id, "run": claim.run, "name": claim.name, "who": owner, "since": _time_text(claim.since)}


def _failed(evaluation_id: str, failure: Failure, state: str) -> dict[str, Any]:
    return {
        "id": evaluation_id,
        "run": failure.run,
        "name": failure.name,
        "kind": failure.kind,
        "reason": failure.reason,
        "tries": failure.errors + failure.losses,
        "at": _time_text(failure.at),
        "state": state,
        "retry_after": None if failure.retry_after is None else _time_text(failure.retry_after),
    }


def _suites(workspace: Store, ledger: Ledger, run: str) -> list[dict[str, Any]]:
    """The suites that are stored with *run*, and the names of their evaluations by state."""
    if not any(True for _ in workspace.list(suite_prefix(run))):
        return []
    own_ledger = Ledger(workspace, run)
    own_ledger.view = ledger.view
    own_ledger.refresh_cancelled()
    suites = []
    for name, recipe in stored_suites(workspace, run).items():
        row: dict[str, Any] = {"run": run, "suite": name}
        try:
            states = group_by_state(plan_all(workspace, run, [recipe]), own_ledger)
        except VitpipeError as error:  # a dataset of it is gone
            suites.append(row | {"problem": str(error)})
            continue
        suites.append(row | {state: [evaluation.name for evaluation in states[state]] for state in STATES})
    return suites


def _time_text(seconds: float) -> str:
    """Seconds since 1970 as a date and time in UTC, which people of any time zone read."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


if __name__ == "__main__":
    main(status)
