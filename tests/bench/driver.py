"""The driver's part of sharding a million made-up entries, connected to Ray: digest, plan, the plan's parts on disk.

``python -m tests.bench.driver [ENTRIES]``: prints what it took as JSON. A process of its own, for its memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.base.ray_session import connected
from pipeline.base.disk_table import DiskTableWriter
from pipeline.base.progress import Silent
from pipeline.base.store import open_store
from pipeline.corpus.sources.readers import FileReader
from pipeline.records.corpus import LISTING_SCHEMA, ClassEntry, Corpus
from pipeline.shard.commit import fingerprint_dataset
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.stage import ShardRequest
from tests.bench.peak import peak_bytes

_OF_A_CLASS, _CHUNK = 1_300, 13_000


def main() -> None:
    num_entries = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as folder, connected(None):
        target = open_store(str(Path(folder) / "dataset"))
        writer = DiskTableWriter(LISTING_SCHEMA)
        for start in range(0, num_entries, _CHUNK):
            writer.add(_entries(start, min(num_entries, start + _CHUNK)))
        classes = tuple(ClassEntry(name=f"n{number:08d}") for number in range(-(-num_entries // _OF_A_CLASS)))
        corpus = Corpus(writer.close(), classes, FileReader(target))
        started, before = time.monotonic(), peak_bytes()
        recipe = ShardRecipe()
        identity = fingerprint_dataset(corpus, recipe, {})
        digested = time.monotonic()
        refs = ShardRequest("bench", corpus, recipe, target, identity).write_plan(Silent())
        ended = time.monotonic()
        facts = {
            "entries": num_entries,
            "shards": len(refs),
            "seconds": ended - started,
            "seconds_of_digest": digested - started,
            "peak_bytes": peak_bytes(),
            "peak_bytes_before": before,
        }
    print(json.dumps(facts))


def _entries(start: int, stop: int) -> pa.Table:
    """Like ImageNet's: ``nCCCCCCCC/nCCCCCCCC_N.JPEG`` of 110 kB, with etags as buckets give them."""
    numbers, count = range(start, stop), stop - start
    columns = {
        "origin": [f"n{number // _OF_A_CLASS:08d}/n{number // _OF_A_CLASS:08d}_{number}.JPEG" for number in numbers],
        "row": np.full(count, -1),
        "offset": np.full(count, -1),
        "num_bytes": np.full(count, 110_000),
        "etag": [f"{number:032x}" for number in numbers],
        "source": np.zeros(count, dtype=np.int16),
        "labels": [[number // _OF_A_CLASS] for number in numbers],
    }
    table = pa.table(columns | {"file": columns["origin"]})
    return table.select(LISTING_SCHEMA.names).cast(LISTING_SCHEMA)


if __name__ == "__main__":
    main()
