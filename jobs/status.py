"""``vitpipe status``: what a workspace holds, and how far each thing is."""

from __future__ import annotations

from typing import Any

from jobs.status_evaluations import Rows, describe_evaluations, evaluations
from jobs.verify import dataset_names
from pipeline.base.errors import DamageError, InputError
from pipeline.base.quantities import format_bytes
from pipeline.base.store import Store
from pipeline.records.dataset import read_dataset_card
from pipeline.records.imported import ImportedCard, list_imported_cards
from pipeline.records.run import extended, list_steps, read_checkpoint_card, read_run_card


def status(workspace: Store) -> dict[str, Any]:
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


if __name__ == "__main__":
    from jobs.cli import main

    main(["status"])
