"""Ray Data runs the plan: one row per shard. The only module here that imports ray.

Not ``write_webdataset``: it writes names with uuids and times, holds no index, and leaves partial tars when it fails.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from typing import Any

import ray.data
import ray.exceptions

from pipeline.base import errors
from pipeline.base.errors import FailedError
from pipeline.base.store.protocol import Store
from pipeline.records.corpus import CorpusReader, Reject
from pipeline.records.dataset import ShardEntry
from pipeline.shard.index import ShardStatistics
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.worker import ErrorAsValue, ShardRef, VerifyShard, WriteShard
from pipeline.shard.writer import WrittenShard

_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")  # the line of a traceback that names what was raised


def run_plan(
    refs: list[ShardRef],
    reader: CorpusReader,
    target: Store,
    recipe: ShardRecipe,
    format_fingerprint: str,
    num_cpus: float,
) -> Generator[WrittenShard]:
    """Write the shards *refs* on the cluster that ray is connected to; each as it is done, in any order.

    Raises what a worker raised, FailedError for what is no error of ours. Closed, it has ended every task.
    """
    work = WriteShard(reader, target, recipe, format_fingerprint)
    with closing(_map_rows([asdict(ref) for ref in refs], work, num_cpus)) as rows:
        yield from map(_written_shard, rows)


def _written_shard(row: dict[str, Any]) -> WrittenShard:
    entry = ShardEntry.model_validate_json(row["entry"]) if row["entry"] else None
    rejects = tuple(Reject(**fields) for fields in json.loads(row["rejects"]))
    return WrittenShard(int(row["number"]), entry, rejects, ShardStatistics.from_json(row["statistics"]))


def find_damaged(shards: list[ShardEntry], target: Store, num_cpus: float) -> Iterator[tuple[str, list[str]]]:
    """Digest every shard on the cluster: its name and its problems, as they become known."""
    rows = [{"entry": shard.model_dump_json()} for shard in shards]
    with closing(_map_rows(rows, VerifyShard(target), num_cpus)) as checked:
        for row in checked:
            yield row["name"], row["problems"].splitlines()


def _map_rows(rows: list[dict[str, Any]], work: Any, num_cpus: float) -> Generator[dict[str, Any]]:
    """What *work* returns for each row, as it comes. However this is left, no task runs any more then."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it logs every dataset's plan and end
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # ours is shown instead
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    # Not iter_rows: a thread of it fetches ahead, and if it calls Ray after the shutdown, the process ends silently.
    results = dataset.map(ErrorAsValue(work), num_cpus=num_cpus).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    try:
        with closing(iter(results)) as tables:
            for row in chain.from_iterable(table.to_pylist() for table in tables):
                if "error" in row:
                    name, message, way_out = json.loads(row["error"])
                    raise getattr(errors, name)(message, way_out)
                yield row
    except ray.exceptions.RayTaskError as error:
        raised = [line for line in str(error).splitlines() if _EXCEPTION.match(line)]
        description = raised[0] if raised else type(error)
        raise FailedError(f"a shard could not be written: {description}", "see --debug") from error
