"""Raw reading of a warm local shard, 60 kB samples, one process: by index with digests checked, against webdataset."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset

from pipeline.base.digests import sha256_hex
from pipeline.base.store import open_store
from pipeline.records.corpus import key_of
from pipeline.records.dataset import INDEX_SCHEMA, SHARDS_TABLE, DatasetCard, DatasetStatistics, ShardEntry
from pipeline.shard.commit import make_card, publish, put_tables
from pipeline.shard.tar import ShardTar
from pipeline.shard.write import index_name, parquet_bytes
from pipeline.stream.dataset import DatasetReader
from tests.bench.row import Row, rate

_SAMPLES, _BYTES = 1000, 60_000


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        shard = _write(Path(folder))
        rows = []
        for check in ("header", "digest"):
            reader = DatasetReader(open_store(folder), "bench", check=check)

            def ours(reader: DatasetReader = reader) -> int:
                for row in range(_SAMPLES):
                    reader.read(0, row)
                return _SAMPLES

            def peer() -> int:
                return sum(1 for _ in webdataset.WebDataset(str(shard), shardshuffle=False))

            mine, theirs = rate(ours), rate(peer)
            what = f"reading 60 kB samples, check={check}, against webdataset {webdataset.__version__}"
            rows.append(Row(what, f"{mine:.0f} samples/s", f"{theirs:.0f} samples/s", mine / theirs))
        return rows


def _write(folder: Path) -> Path:
    """A dataset of random bytes: reading decodes nothing."""
    target = open_store(str(folder / "datasets" / "bench"))
    draw, tar, rows = np.random.default_rng(0), ShardTar(), []
    for number in range(_SAMPLES):
        key, data = key_of(str(number)), draw.bytes(_BYTES)
        label_offset = tar.add(f"{key}.cls", b"0")
        offset = tar.add(f"{key}.jpg", data)
        facts = {"key": key, "labels": [0], "image_offset": offset, "image_bytes": _BYTES, "width": 1, "height": 1}
        more = {"label_offset": label_offset, "label_bytes": 1, "format": "jpg", "origin": str(number)}
        rows.append(facts | more | {"sha256": sha256_hex(data)})
    archive, index = tar.close(), parquet_bytes(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    name = "shard-000000.tar"
    target.put(name, archive)
    target.put(index_name(name), index)
    entry = ShardEntry(
        name=name,
        num_bytes=len(archive),
        sha256=sha256_hex(archive),
        num_samples=_SAMPLES,
        index_sha256=sha256_hex(index),
    )
    publish(target, _card(entry, put_tables(target, [entry], [])))
    return folder / "datasets" / "bench" / name


def _card(entry: ShardEntry, tables: dict[str, str]) -> DatasetCard:
    assert SHARDS_TABLE in tables
    statistics = DatasetStatistics(
        label_counts=(_SAMPLES,), formats={"jpg": _SAMPLES}, width_min=1, width_max=1, height_min=1, height_max=1
    )
    return make_card(
        name="bench",
        class_names=("one",),
        num_input=_SAMPLES,
        num_rejected=0,
        shards=[entry],
        statistics=statistics,
        recipe={},
        listing_digest="",
        format_fingerprint="",
        tables=tables,
    )
