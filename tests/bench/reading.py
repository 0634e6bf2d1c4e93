"""Raw reading of a warm local shard, 60 kB samples, one process: by index with digests checked, against webdataset."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from pipeline.base.digests import sha256_hex
from pipeline.base.store import open_store
from pipeline.records.corpus import key_of
from pipeline.records.dataset import CARD, INDEX_SCHEMA, DatasetCard, ShardEntry, dataset_digest
from pipeline.shard.commit import put_tables
from pipeline.shard.writer import TarWriter
from pipeline.stream.dataset import DatasetReader
from tests.bench.row import Row, rate
from tests.support.statistics import plain_statistics

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
            least = 5.0 if check == "header" else None  # a digest alone takes what webdataset does in all
            rows.append(Row(what, f"{mine:.0f} samples/s", f"{theirs:.0f} samples/s", mine / theirs, least))
        return rows


def _write(folder: Path) -> Path:
    """A dataset of random bytes: reading decodes nothing."""
    target = open_store(str(folder / "datasets" / "bench"))
    draw, file, rows = np.random.default_rng(0), io.BytesIO(), []
    tar = TarWriter(file)
    for number in range(_SAMPLES):
        key, data = key_of(str(number)), draw.bytes(_BYTES)
        label_offset = tar.add(f"{key}.cls", b"0")
        offset = tar.add(f"{key}.jpg", data)
        facts = {"key": key, "labels": [0], "image_offset": offset, "image_bytes": _BYTES, "width": 1, "height": 1}
        more = {"label_offset": label_offset, "label_bytes": 1, "format": "jpg", "origin": str(number)}
        rows.append(facts | more | {"sha256": sha256_hex(data)})
    digest, index = tar.close(), io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), index)
    target.put("shard-000000.tar", file.getvalue())
    target.put("shard-000000.parquet", index.getvalue())
    entry = ShardEntry(
        name="shard-000000.tar",
        num_bytes=tar.num_bytes,
        sha256=digest,
        num_samples=_SAMPLES,
        index_sha256=sha256_hex(index.getvalue()),
    )
    target.put(CARD, _card(entry, put_tables(target, [entry], [], [], {})).to_json())
    return folder / "datasets" / "bench" / "shard-000000.tar"


def _card(entry: ShardEntry, tables: dict[str, str]) -> DatasetCard:
    return DatasetCard(
        name="bench",
        class_names=("one",),
        num_input=_SAMPLES,
        num_samples=_SAMPLES,
        num_rejected=0,
        num_duplicates=0,
        num_bytes=entry.num_bytes,
        num_shards=1,
        statistics=plain_statistics((_SAMPLES,), {"jpg": _SAMPLES}, 1),
        made_of={},
        recipe={},
        listing_digest="",
        fingerprint="",
        tables=tables,
        digest=dataset_digest([entry.sha256]),
    )
