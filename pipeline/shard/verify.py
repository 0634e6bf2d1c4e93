"""Is what the card says what is stored? Names what is damaged.

Three depths: ``fast`` looks at cards, tables and sizes; ``bytes`` (the default) digests every file as well;
``full`` also reads every sample through its index, decodes it, compares its label, counts everything again, and has
stock webdataset read the same keys. Each problem begins with the name of its file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from pipeline.base.digests import sha256_hex
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.records.dataset import (
    CARD,
    DUPLICATES_TABLE,
    REJECTS_TABLE,
    SHARDS_TABLE,
    DatasetCard,
    ShardEntry,
    dataset_digest,
)
from pipeline.records.record import read_record
from pipeline.shard.commit import read_shards
from pipeline.shard.identity import is_of_one_piece
from pipeline.shard.samples import Recount, check_samples
from pipeline.shard.write import index_name

Depth = Literal["fast", "bytes", "full"]


def verify_dataset(target: Store, depth: Depth, progress: Progress) -> list[str]:
    """Every problem found, one line each; empty when all is well.

    Raises FileNotFoundError when there is no card, DamageError when the card itself is damaged.
    """
    card = read_record(DatasetCard, target, CARD)
    problems = _check_counts(card)
    for name, expected in ((REJECTS_TABLE, card.num_rejected), (DUPLICATES_TABLE, card.num_duplicates)):
        problems += _check_table(target, card, name, expected)
    unreadable = _check_table(target, card, SHARDS_TABLE, None)
    if unreadable:
        return problems + unreadable
    try:
        shards = read_shards(target, card)
    except ValueError:  # pydantic's, of rows
        return [*problems, f"{SHARDS_TABLE}: its rows do not name shards"]
    problems += _check_sums(card, shards)
    recount = Recount()
    progress.start(f"verify {card.name}", len(shards))
    for shard in shards:
        problems += check_shard(target, shard, depth, recount)
        progress.advance(note=f"{len(problems)} problems" if problems else "")
    progress.finish()
    if depth == "full" and not problems:
        problems += recount.differences(card)
    return problems


def check_shard(target: Store, shard: ShardEntry, depth: Depth, recount: Recount | None = None) -> list[str]:
    """The problems of one shard and its index."""
    index_problems, tar_problems = _check_index(target, shard, depth), _check_place(target, shard)
    if depth == "fast" or tar_problems:
        return index_problems + tar_problems
    with _as_file(target, shard.name) as path, path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            tar_problems.append(f"{shard.name}: damaged, its sha256 is not the one in {SHARDS_TABLE}")
        if not index_problems and (depth == "full" or tar_problems):
            index = target.read(index_name(shard.name))
            counted = (recount or Recount()) if depth == "full" else None
            tar_problems += check_samples(shard, file, index, counted)
    return index_problems + tar_problems


def _check_place(target: Store, shard: ShardEntry) -> list[str]:
    info = target.head(shard.name)
    if info is None:
        return [f"{shard.name}: missing"]
    if info.num_bytes != shard.num_bytes:
        return [f"{shard.name}: {info.num_bytes} bytes, {SHARDS_TABLE} says {shard.num_bytes}"]
    return []


def _check_index(target: Store, shard: ShardEntry, depth: Depth) -> list[str]:
    name = index_name(shard.name)
    if target.head(name) is None:
        return [f"{name}: missing"]
    if depth != "fast" and sha256_hex(target.read(name)) != shard.index_sha256:
        return [f"{name}: damaged, its sha256 is not the one in {SHARDS_TABLE}"]
    return []


@contextmanager
def _as_file(target: Store, key: str) -> Iterator[Path]:
    """The object as a local file: in place, or fetched for the time of the block."""
    place = target.local_path(key)
    if place is not None:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="vitpipe-verify-") as folder:
        target.fetch(key, Path(folder) / "object")
        yield Path(folder) / "object"


def _check_counts(card: DatasetCard) -> list[str]:
    problems, statistics = [], card.statistics
    if card.num_input != card.num_samples + card.num_rejected + card.num_duplicates:
        problems.append(
            f"{CARD}: input {card.num_input} is not written {card.num_samples} + rejected {card.num_rejected}"
            f" + duplicates {card.num_duplicates}"
        )
    if not is_of_one_piece(card):
        problems.append(f"{CARD}: its fingerprint is not that of its recipe, listing and class names")
    for name in ("formats", "short_sides", "aspects"):
        if sum(getattr(statistics, name).values()) != card.num_samples:
            problems.append(f"{CARD}: its {name} do not add up to {card.num_samples} samples")
    if len(statistics.label_counts) != len(card.class_names):
        problems.append(f"{CARD}: counts {len(statistics.label_counts)} classes, names {len(card.class_names)}")
    return problems


def _check_table(target: Store, card: DatasetCard, name: str, expected_rows: int | None) -> list[str]:
    if name not in card.tables:
        return [f"{CARD}: names no digest of {name}"]
    if target.head(name) is None:
        return [f"{name}: missing"]
    with _as_file(target, name) as path:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != card.tables[name]:
                return [f"{name}: damaged, its sha256 is not the one in {CARD}"]
        try:
            num_rows = pq.read_metadata(path).num_rows
        except (ValueError, OSError):
            return [f"{name}: cannot be read as parquet"]
    if expected_rows is None or num_rows == expected_rows:
        return []
    return [f"{name}: {num_rows} rows, the card says {expected_rows}"]


def _check_sums(card: DatasetCard, shards: list[ShardEntry]) -> list[str]:
    problems = []
    if len(shards) != card.num_shards:
        problems.append(f"{SHARDS_TABLE}: {len(shards)} shards, the card says {card.num_shards}")
    if sum(shard.num_bytes for shard in shards) != card.num_bytes:
        problems.append(f"{SHARDS_TABLE}: the shards' bytes do not add up to the card's {card.num_bytes}")
    if dataset_digest([shard.sha256 for shard in shards]) != card.digest:
        problems.append(f"{SHARDS_TABLE}: the shards' digests do not give the card's dataset digest")
    if sum(shard.num_samples for shard in shards) != card.num_samples:
        problems.append(f"{SHARDS_TABLE}: the shards' samples do not add up to the card's {card.num_samples}")
    return problems
