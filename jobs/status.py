"""``vitpipe status``: what a workspace holds, and how far each thing is."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from typing import Any

from jobs.base.console import print_table
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, print_result, require_workspace, stores_of
from jobs.verify import dataset_names
from pipeline.base.errors import DamageError, InputError, VitpipeError
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store
from pipeline.base.units import format_bytes
from pipeline.evaluate.discovery import by_state, kept_suites, plan_all
from pipeline.evaluate.ledger import Ledger
from pipeline.records.dataset import read_dataset_card
from pipeline.records.imported import ImportedCard, list_imported_cards
from pipeline.records.ledger import Claim, Failure, suite_prefix
from pipeline.records.run import extended, list_steps, read_checkpoint_card, read_run_card

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


def run_status(workspace: Store) -> dict[str, Any]:
    """Datasets, runs, imported weights, evaluations and reports, as plain values."""
    keys = [info.key for prefix in ("runs/", "reports/") for info in workspace.list(prefix)]
    runs = _names(keys, "runs/", "/run.json")
    imported = list_imported_cards(workspace)
    return {
        "workspace": workspace.uri,
        "datasets": [_dataset(workspace, name) for name in dataset_names(workspace)],
        "runs": [_run(workspace, name) for name in runs],
        "imported": [_imported(card) for card in imported],
        "evaluations": evaluations(workspace, [*runs, *(card.name for card in imported)]),
        "reports": [
            f"{workspace.uri}/reports/{name}/report.html" for name in _names(keys, "reports/", "/summary.json")
        ],
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
    told = {"name": name, "dataset": run.dataset_name, "steps": total, "checkpoints": steps}
    return told | {"damaged": damaged, "state": state}


def _has_card(workspace: Store, run: str, step: int) -> bool:
    """Whether the card there is whole: who asks how things stand is told of damage, not refused for it."""
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


def describe(found: dict[str, Any]) -> list[tuple[str, list[str], Rows]]:
    """The status as tables: (title, columns, rows)."""
    datasets: Rows = [
        (
            d["name"],
            f"{d['samples']:,}",
            str(d["rejected"]),
            str(d["classes"]),
            str(d["shards"]),
            format_bytes(d["bytes"]),
        )
        for d in found["datasets"]
    ]
    runs: Rows = [
        (r["name"], r["dataset"], str(r["steps"]), ", ".join(map(str, r["checkpoints"])) or "-", r["state"])
        for r in found["runs"]
    ]
    tables: list[tuple[str, list[str], Rows]] = [
        ("Datasets", ["name", "samples", "rejected", "classes", "shards", "size"], datasets),
        ("Runs", ["name", "dataset", "steps", "checkpoints", "state"], runs),
    ]
    imported: Rows = [
        (w["name"], w["weights_digest"][:12], format_bytes(w["bytes"]), w["source"]) for w in found["imported"]
    ]
    if imported:
        tables.append(("Imported weights", ["name", "digest", "size", "from"], imported))
    tables += describe_evaluations(found["evaluations"])
    if found["reports"]:
        tables.append(("Reports", ["page"], [(where,) for where in found["reports"]]))
    return tables


def status(
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a workspace holds: datasets, runs and their checkpoints, imported weights, evaluations, reports."""

    found = run_status(open_store(require_workspace(workspace), stores_of(workspace, endpoint)))

    def show() -> None:
        for title, columns, rows in describe(found):
            print_table(title, columns, rows)

    print_result(as_json, found, show)


if __name__ == "__main__":
    main(status)
