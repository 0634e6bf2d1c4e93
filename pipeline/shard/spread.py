"""Ray Data runs the plan: one row per shard. The only module here that imports ray.

Not ``write_webdataset``: it writes names with uuids and times, holds no index, and leaves partial tars when it fails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray.data

from pipeline.base.store import Store
from pipeline.records.corpus import CorpusReader, Reject
from pipeline.records.dataset import ShardEntry
from pipeline.shard.plan import PlannedShard, table_bytes, table_from_bytes
from pipeline.shard.write import WrittenShard, find_written, plan_digest, write_shard


class _Task:
    """Writes the shard of one row. Travels to the workers, so it holds nothing that is open."""

    def __init__(self, reader: CorpusReader, target: Store, format_fingerprint: str) -> None:
        self._reader, self._target, self._format = reader, target, format_fingerprint

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = PlannedShard(int(row["number"]), table_from_bytes(row["entries"]))
        plan = plan_digest(shard, self._format)
        written = find_written(shard, self._target, plan) or write_shard(shard, self._reader, self._target, plan)
        return {
            "number": written.number,
            "entry": written.entry.model_dump_json() if written.entry else "",
            "rejects": _reject_rows(written.rejects),
        }


def _reject_rows(rejects: tuple[Reject, ...]) -> list[dict[str, str]]:
    """Rejects as plain rows; a placeholder row keeps Arrow from guessing a type for none at all."""
    return [asdict(reject) for reject in rejects] or [asdict(Reject("", "none"))]


def run_plan(
    plan: Iterator[PlannedShard], reader: CorpusReader, target: Store, format_fingerprint: str, num_cpus: float
) -> Iterator[WrittenShard]:
    """Run *plan* on the cluster that ray is connected to; what was written, as it gets done, in any order."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it logs every dataset's plan and end
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    rows = [{"number": shard.number, "entries": table_bytes(shard.entries)} for shard in plan]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    task = _Task(reader, target, format_fingerprint)
    for row in dataset.map(task, num_cpus=num_cpus).iter_rows():
        entry = ShardEntry.model_validate_json(row["entry"]) if row["entry"] else None
        rejects = tuple(Reject(**item) for item in row["rejects"] if item["reason"] != "none")
        yield WrittenShard(int(row["number"]), entry, rejects)
