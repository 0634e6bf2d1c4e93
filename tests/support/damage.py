"""Damage to a stored dataset: done to its files, or also to every digest above them so that only content can tell."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import sha256_hex
from pipeline.base.progress import Silent
from pipeline.base.store import Store
from pipeline.records.dataset import CARD, INDEX_SCHEMA, SHARDS_SCHEMA, SHARDS_TABLE, dataset_digest
from pipeline.shard.verify import Depth, verify_dataset

DEPTHS: tuple[Depth, ...] = ("fast", "bytes", "full")


def problems_of(target: Store, depth: Depth) -> list[str]:
    """What verification finds."""
    return verify_dataset(target, depth, Silent())


def files_of(problems: list[str]) -> set[str]:
    """The files that *problems* name."""
    return {problem.partition(":")[0] for problem in problems}


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """*data* with one bit of the byte at *at* turned."""
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def flip(target: Store, key: str, at: int, bit: int = 0) -> None:
    """Turn one bit of a stored object."""
    target.put(key, flipped(target.read(key), at, bit))


def edit_card(target: Store, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the card with something changed."""
    card = json.loads(target.read(CARD))
    change(card)
    target.put(CARD, json.dumps(card).encode())


def index_rows(target: Store, number: int) -> list[dict[str, Any]]:
    """The rows of a shard's index."""
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(target.read(f"shard-{number:06d}.parquet"))).to_pylist()
    return rows


def put_index(target: Store, number: int, rows: list[dict[str, Any]], schema: pa.Schema = INDEX_SCHEMA) -> None:
    """Replace a shard's index."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    target.put(f"shard-{number:06d}.parquet", buffer.getvalue())


def seal(target: Store) -> None:
    """Make every digest and size of shards and indexes, in the table and in the card, those of what is stored."""
    shards = pq.read_table(io.BytesIO(target.read(SHARDS_TABLE))).to_pylist()
    for shard in shards:
        tar, index = target.read(shard["name"]), target.read(shard["name"].replace(".tar", ".parquet"))
        shard |= {"sha256": sha256_hex(tar), "num_bytes": len(tar), "index_sha256": sha256_hex(index)}
    seal_table(target, shards)


def seal_table(target: Store, shards: list[dict[str, Any]]) -> None:
    """Write the table of shards, and the card that fits it."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(shards, schema=SHARDS_SCHEMA), buffer)
    target.put(SHARDS_TABLE, buffer.getvalue())

    def fit(card: dict[str, Any]) -> None:
        card["tables"][SHARDS_TABLE] = sha256_hex(buffer.getvalue())
        card["digest"] = dataset_digest([shard["sha256"] for shard in shards])
        card["num_bytes"] = sum(shard["num_bytes"] for shard in shards)

    edit_card(target, fit)
