"""The shard plan: a pure function of the listing and the recipe. Kill anything, plan again, get the same shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.base.digests import sha256_hex
from pipeline.shard.recipe import ShardRecipe


@dataclass(frozen=True)
class PlannedShard:
    """One row of the plan: the shard's number and its entries, in the order of the tar."""

    number: int
    entries: pa.Table

    @property
    def name(self) -> str:
        """The tar's file name."""
        return f"shard-{self.number:06d}.tar"


def num_shards(num_entries: int, num_bytes: int, recipe: ShardRecipe) -> int:
    """How many shards keep both limits on average; at least one."""
    by_samples = -(-num_entries // recipe.max_samples)
    by_bytes = -(-num_bytes // recipe.max_bytes)
    return max(1, min(num_entries, max(by_samples, by_bytes)))


def shuffled(listing: pa.Table, seed: int) -> pa.Table:
    """The listing in its global order: by a keyed hash of the origin, so no entry's place depends on the listing's."""
    key = seed.to_bytes(16, "big")
    digests = (
        hashlib.blake2b(origin.as_py().encode(), digest_size=8, key=key).digest() for origin in listing["origin"]
    )
    places = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)
    return listing.take(pa.array(np.argsort(places, kind="stable")))


def plan_shards(listing: pa.Table, recipe: ShardRecipe) -> Iterator[PlannedShard]:
    """Cut the shuffled listing into shards of nearly equal numbers of entries."""
    ordered = shuffled(listing.sort_by("origin"), recipe.seed)
    num_bytes = sum(batch.column("num_bytes").to_numpy(zero_copy_only=False).sum() for batch in listing.to_batches())
    count = num_shards(ordered.num_rows, int(num_bytes), recipe)
    for number in range(count):
        start, stop = number * ordered.num_rows // count, (number + 1) * ordered.num_rows // count
        yield PlannedShard(number, ordered.slice(start, stop - start).combine_chunks())


def table_bytes(table: pa.Table) -> bytes:
    """*table* as an Arrow IPC stream: how entries travel to the tasks, and what is digested."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def table_from_bytes(data: bytes) -> pa.Table:
    """The inverse of :func:`table_bytes`."""
    return pa.ipc.open_stream(data).read_all()


def listing_digest(listing: pa.Table, class_names: tuple[str, ...]) -> str:
    """Digest of what was found: origins, sizes, labels and class names, whatever their order in the listing."""
    columns = listing.sort_by("origin").select(["origin", "num_bytes", "labels"])
    return sha256_hex(table_bytes(columns) + "\x1f".join(class_names).encode())
