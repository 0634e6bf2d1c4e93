"""DALI's index files, written from ours.

Format of the index of DALI's ``readers.webdataset``, version v1.2: a line ``v1.2 <samples>``, then for each sample a
line with ``extension offset size name`` for each of its members in the order of the tar; offsets are of the members'
data, in bytes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import read_parquet
from pipeline.base.errors import DamageError
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.records.dataset import DatasetCard, ShardEntry
from pipeline.shard.commit import read_shards
from pipeline.shard.index import index_name, label_member

_DALI_VERSION = "v1.2"
_READERS = 8  # indexes that are fetched at a time
_BATCH_ROWS = 1_024  # rows that are Python objects at a time


def put_dali_indexes(target: Store, card: DatasetCard, out: Store, progress: Progress) -> int:
    """Write DALI's index of each shard of the dataset at *target* into *out*; returns their number. Reads no tar.

    Raises DamageError when an index is not the one that the dataset names.
    """
    shards = read_shards(target, card)
    progress.start(f"index {card.name}", len(shards))
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(lambda shard: _put_dali_index(target, shard, out), shards):
            progress.advance()
    progress.finish()
    return len(shards)


def _put_dali_index(target: Store, shard: ShardEntry, out: Store) -> None:
    data = _read_index(target, shard)
    out.put(shard.name.removesuffix(".tar") + ".idx", _dali_index(read_parquet(data)))


def _read_index(target: Store, shard: ShardEntry) -> bytes:
    name = index_name(shard.name)
    try:
        data = target.read(name)
    except FileNotFoundError:
        raise DamageError(f"{target.uri}/{name} is missing", "shard the dataset again") from None
    if sha256_hex(data) != shard.index_sha256:
        raise DamageError(f"{target.uri}/{name} is damaged", "shard the dataset again")
    return data


def _dali_index(index: pa.Table) -> bytes:
    """DALI's index of a shard, from ours (INDEX_SCHEMA)."""
    lines = [f"{_DALI_VERSION} {index.num_rows}"]
    for batch in index.to_batches(max_chunksize=_BATCH_ROWS):
        lines += [" ".join(_components(row)) for row in batch.to_pylist()]
    return ("\n".join(lines) + "\n").encode("ascii")


def _components(row: dict[str, Any]) -> list[str]:
    extension, _ = label_member(row["labels"])
    members = [
        (row["label_offset"], row["label_bytes"], extension),
        (row["image_offset"], row["image_bytes"], row["format"]),
    ]
    return [f"{kind} {offset} {size} {row['key']}.{kind}" for offset, size, kind in sorted(members)]
