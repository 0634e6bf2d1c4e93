"""The shard plan: a pure function of the entries and the recipe. Kill anything, plan again, get the same shards.

The global shuffle is a sort by a keyed hash of the origin, done on disk a bucket at a time, so that no more than a
few hundred thousand entries are in memory, whatever the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import DiskTable, ExternalSorter
from pipeline.base.errors import InputError
from pipeline.records.corpus import LISTING_SCHEMA, ClassEntry
from pipeline.shard.recipe import ShardRecipe


@dataclass(frozen=True)
class PlannedShard:
    """One row of the plan: the shard's number and its entries, in the order of the tar."""

    number: int
    entries: pa.Table

    @property
    def name(self) -> str:
        """The tar's file name."""
        return shard_name(self.number)


def shard_name(number: int) -> str:
    """The file name of shard *number*."""
    return f"shard-{number:06d}.tar"


def shard_number(name: str) -> int:
    """The inverse of :func:`shard_name`."""
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def num_shards(num_entries: int, num_bytes: int, recipe: ShardRecipe) -> int:
    """How many shards keep both limits on average; at least one."""
    by_samples = -(-num_entries // recipe.max_samples)
    by_bytes = -(-num_bytes // recipe.max_bytes)
    return max(1, min(num_entries, max(by_samples, by_bytes)))


def total_bytes(entries: DiskTable) -> int:
    """The bytes of all entries, as listed."""
    return sum(pc.sum(table["num_bytes"]).as_py() or 0 for table in entries.chunks())


def plan_shards(entries: DiskTable, recipe: ShardRecipe) -> Iterator[PlannedShard]:
    """Cut the shuffled entries into shards of nearly equal numbers of entries. One bucket of them is in memory.

    Raises InputError when an origin is listed twice.
    """
    count = num_shards(entries.num_rows, total_bytes(entries), recipe)
    sorter = ExternalSorter(LISTING_SCHEMA, entries.num_rows, tie="origin")
    for table in entries.chunks():
        sorter.add(table, _shuffle_keys(table["origin"], recipe.seed))
    number, num_pending = 0, 0
    pending: list[pa.Table] = []
    for table in sorter.in_order():
        _check_unique(table["origin"])
        start = 0
        while start < table.num_rows:
            size = _start_of(number + 1, entries.num_rows, count) - _start_of(number, entries.num_rows, count)
            piece = table.slice(start, size - num_pending)
            pending, num_pending, start = [*pending, piece], num_pending + piece.num_rows, start + piece.num_rows
            if num_pending == size:
                yield PlannedShard(number, pa.concat_tables(pending).combine_chunks())
                number, pending, num_pending = number + 1, [], 0


def _shuffle_keys(origins: pa.ChunkedArray, seed: int) -> NDArray[np.uint64]:
    """The sort key of each origin: a keyed hash, so that no entry's position depends on the others."""
    key = seed.to_bytes(16, "big")
    digests = [hashlib.blake2b(origin.encode(), digest_size=8, key=key).digest() for origin in origins.to_pylist()]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _check_unique(origins: pa.ChunkedArray) -> None:
    """Equal origins have equal sort keys, so they are neighbours; no tar may have a key twice."""
    combined = origins.combine_chunks()
    same = pc.equal(combined[1:], combined[:-1])
    if pc.any(same).as_py():
        repeated = combined[pc.index(same, True).as_py()].as_py()
        raise InputError(f"{repeated!r} is listed twice", "origins must be unique: list it once")


def _start_of(number: int, num_entries: int, count: int) -> int:
    """The first entry of shard *number*, of *count* shards."""
    return number * num_entries // count


def table_bytes(table: pa.Table) -> bytes:
    """*table* as an Arrow IPC stream: how entries travel to the workers, and what is digested."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def table_from_bytes(data: bytes) -> pa.Table:
    """The inverse of :func:`table_bytes`."""
    return pa.ipc.open_stream(data).read_all()


def listing_digest(entries: DiskTable, classes: tuple[ClassEntry, ...]) -> str:
    """Digest of a listing: origins, sizes, labels and classes, whatever the order of its entries.

    A sum of the rows' digests, since the rows may be more than can be sorted in memory.
    """
    total = 0
    for table in entries.chunks():
        columns = (table[name].to_pylist() for name in ("origin", "num_bytes", "labels"))
        for origin, num_bytes, labels in zip(*columns, strict=True):
            row = f"{origin}\x1f{num_bytes}\x1f{labels}".encode()
            total += int.from_bytes(hashlib.sha256(row).digest(), "big")
    named = "\x1f".join(f"{entry.name}\x1e{entry.synset}\x1e{entry.parent}" for entry in classes)
    return sha256_hex(f"{entries.num_rows}\x1f{total % 2**256:064x}\x1f{named}".encode())
