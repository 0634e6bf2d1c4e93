"""Samples drawn from a dataset by a seed, each as likely as any other, and read one by one out of the shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.seeds import generator
from pipeline.base.store import Store
from pipeline.base.store.reading import open_object
from pipeline.records.dataset import DatasetCard, ShardEntry
from pipeline.shard.commit import read_shards
from pipeline.shard.write import index_name, read_statistics

_READERS = 8  # objects that are read at a time
_COLUMNS = ["key", "labels", "image_offset", "image_bytes", "sha256", "width", "height", "format"]


@dataclass(frozen=True)
class Picked:
    """One sample: its labels, its size in pixels, its format, and the bytes of its image."""

    labels: list[int]
    width: int
    height: int
    format: str
    image: bytes


def pick(target: Store, card: DatasetCard, count: int, seed: int, label: int | None = None) -> list[dict[str, Any]]:
    """*count* rows of the indexes, or all there are, in the order of the dataset; of class *label* when given.

    Each sample is as likely as any other. Reads only the indexes of shards that are hit (and with *label* the
    footers before them). Raises DamageError when an index is missing or is not what the card adds up to.
    """
    total = card.num_samples if label is None else card.statistics.label_counts[label]
    ranks = sorted(generator(seed, "sample", card.digest).choice(total, min(count, total), replace=False).tolist())
    shards = read_shards(target, card)
    with ThreadPoolExecutor(_READERS) as pool:
        hits = list(_hits(shards, ranks, _sizes(target, shards, label, pool)))
        found = pool.map(lambda hit: _rows(target, hit[0], hit[1], label), hits)
        picked = list(itertools.chain.from_iterable(found))
    if len(picked) != len(ranks):
        raise DamageError(f"{target.uri}: the indexes have other samples than the card", "see vitpipe verify")
    return picked


def read_picked(target: Store, rows: list[dict[str, Any]]) -> list[Picked]:
    """The images of *rows*, read by their offsets. Raises DamageError when one is not what the index says."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(partial(_read, target), rows))


def _sizes(target: Store, shards: list[ShardEntry], label: int | None, pool: ThreadPoolExecutor) -> Iterator[int]:
    """How many samples each shard has to draw from."""
    if label is None:
        yield from (shard.num_samples for shard in shards)
        return
    for start in range(0, len(shards), _READERS):  # not all at once: the caller may need only the first ones
        yield from pool.map(lambda shard: _num_of_class(target, shard, label), shards[start : start + _READERS])


def _num_of_class(target: Store, shard: ShardEntry, label: int) -> int:
    with _telling(target, shard):
        return read_statistics(target, shard.name).labels[str(label)]


def _hits(shards: list[ShardEntry], ranks: list[int], sizes: Iterator[int]) -> Iterator[tuple[ShardEntry, list[int]]]:
    """Each shard that has some of *ranks* (ascending), and which of its samples those are."""
    start, at = 0, 0
    for shard, size in zip(shards, sizes, strict=False):
        inside = []
        while at < len(ranks) and ranks[at] < start + size:
            inside.append(ranks[at] - start)
            at += 1
        if inside:
            yield shard, inside
        start += size
        if at == len(ranks):
            return


def _rows(target: Store, shard: ShardEntry, ranks: list[int], label: int | None) -> list[dict[str, Any]]:
    """The *ranks*-th samples of *shard*, or of its samples of class *label*."""
    with _telling(target, shard), open_object(target, index_name(shard.name)) as file:
        index = pq.ParquetFile(file).read(columns=_COLUMNS)
        if label is not None:
            flat, parents = pc.list_flatten(index["labels"]), pc.list_parent_indices(index["labels"])
            index = index.take(parents.filter(pc.equal(flat, label)))
        rows: list[dict[str, Any]] = index.take(ranks).to_pylist()
        return [row | {"shard": shard.name} for row in rows]


def _read(target: Store, row: dict[str, Any]) -> Picked:
    where = f"{target.uri}/{row['shard']}"
    try:
        image = target.read_range(row["shard"], row["image_offset"], row["image_bytes"])
    except FileNotFoundError:
        raise DamageError(f"{where} is missing", "shard the dataset again") from None
    if sha256_hex(image) != row["sha256"]:
        raise DamageError(f"{where}: sample {row['key']} is damaged", "shard the dataset again")
    return Picked(row["labels"], row["width"], row["height"], row["format"], image)


class _telling:  # noqa: N801 - reads as a verb: with _telling(target, shard)
    """Turns what reading a missing or damaged index raises into a DamageError that names it."""

    def __init__(self, target: Store, shard: ShardEntry) -> None:
        self._name = f"{target.uri}/{index_name(shard.name)}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise DamageError(f"{self._name} is missing", "shard the dataset again") from None
        if isinstance(error, pa.ArrowException | OSError | ValueError | LookupError | TypeError):
            raise DamageError(f"{self._name} is damaged", "shard the dataset again") from None
