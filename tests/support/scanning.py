"""Corpora and evaluation sets for tests of scanning, made of bytes at hand; tasks run in this process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import DiskTable
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.base.store.protocol import ObjectChangedError
from pipeline.corpus.scan import Scanner
from pipeline.corpus.worker import Row
from pipeline.records.corpus import LISTING_SCHEMA, ClassEntry, Corpus, key_of
from pipeline.records.dataset import (
    INDEX_SCHEMA,
    SHARDS_SCHEMA,
    SHARDS_TABLE,
    DatasetCard,
    DatasetStatistics,
    dataset_prefix,
)

CHANGED = b"\0changed"
Labels = Mapping[str, list[int] | None]


@dataclass(frozen=True)
class BytesReader:
    """Reads by origin: absent is a missing file, None a null image, CHANGED an object with another etag.

    ``reads`` counts what was read, where tasks run in this process.
    """

    images: Mapping[str, bytes | None]
    reads: list[str] = field(default_factory=list)

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _Images(self, entries["origin"].to_pylist())


class _Images(Iterator[bytes | None]):
    def __init__(self, reader: BytesReader, origins: list[str]) -> None:
        self._reader, self._origins = reader, iter(origins)

    def __next__(self) -> bytes | None:
        origin = next(self._origins)
        self._reader.reads.append(origin)
        if origin not in self._reader.images:
            raise FileNotFoundError(origin)
        if self._reader.images[origin] == CHANGED:
            raise ObjectChangedError(origin)
        return self._reader.images[origin]


def listing_of(origins: list[str], labels: Labels, num_bytes: list[int]) -> pa.Table:
    """A listing of *origins*, whole objects."""
    count = len(origins)
    columns = {
        "origin": origins,
        "file": origins,
        "row": [-1] * count,
        "offset": [-1] * count,
        "num_bytes": num_bytes,
        "etag": [""] * count,
        "source": [0] * count,
        "labels": [labels.get(origin) for origin in origins],
    }
    return pa.table(columns, schema=LISTING_SCHEMA)


def corpus_of(images: Mapping[str, bytes | None], labels: Labels | None = None, **fields: Any) -> Corpus:
    """The corpus of *images*, in the order of the mapping; ``missing`` names listed images that are not there."""
    origins = [*images, *fields.pop("missing", [])]
    labels = labels or {}
    classes = 1 + max((label for found in labels.values() for label in found or ()), default=-1)
    entries = listing_of(origins, labels, [len(images.get(origin) or b"") for origin in origins])
    names = tuple(ClassEntry(name=f"class-{number}") for number in range(classes))
    return Corpus(DiskTable.of(entries), names, BytesReader(images), **fields)


def in_process(task: Callable[[Row], Row], rows: list[Row]) -> Iterator[Row]:
    """Runs the tasks here, in turn."""
    yield from map(task, rows)


def scanner_in(folder: Path) -> Scanner:
    """A scanner whose work stands in *folder*."""
    return Scanner(open_store(str(folder)), in_process, Silent())


def origins_of(rows: DiskTable) -> list[str]:
    """The origins of *rows*, in their order."""
    return rows.table()["origin"].to_pylist()


def put_evaluation_set(workspace: Store, name: str, images: Mapping[str, bytes], per_shard: int = 2) -> DatasetCard:
    """A dataset of *images* as far as comparing with it needs one: shards, indexes, the table of shards, the card."""
    shards = []
    items = list(images.items())
    for number, start in enumerate(range(0, len(items), per_shard)):
        shards.append(_put_shard(workspace, name, number, items[start : start + per_shard]))
    table = _parquet(pa.Table.from_pylist(shards, schema=SHARDS_SCHEMA))
    workspace.put(f"{dataset_prefix(name)}/{SHARDS_TABLE}", table)
    card = _card(name, len(items), shards, sha256_hex(table))
    workspace.put(f"{dataset_prefix(name)}/dataset.json", card.to_json())
    return card


def _put_shard(workspace: Store, name: str, number: int, items: list[tuple[str, bytes]]) -> dict[str, Any]:
    archive, rows = io.BytesIO(), []
    for origin, data in items:
        archive.write(bytes(512))
        place = {"image_offset": archive.tell(), "image_bytes": len(data)}
        rows.append({"key": key_of(origin), "origin": origin, "sha256": sha256_hex(data), "labels": [0], **place})
        archive.write(data)
    index = _parquet(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    shard = f"shard-{number:06d}.tar"
    workspace.put(f"{dataset_prefix(name)}/{shard}", archive.getvalue())
    workspace.put(f"{dataset_prefix(name)}/shard-{number:06d}.parquet", index)
    return {
        "name": shard,
        "num_bytes": len(archive.getvalue()),
        "sha256": sha256_hex(archive.getvalue()),
        "num_samples": len(items),
        "index_sha256": sha256_hex(index),
    }


def _card(name: str, count: int, shards: list[dict[str, Any]], table_sha256: str) -> DatasetCard:
    return DatasetCard(
        name=name,
        class_names=("only",),
        num_input=count,
        num_samples=count,
        num_rejected=0,
        num_duplicates=0,
        num_bytes=sum(shard["num_bytes"] for shard in shards),
        num_shards=len(shards),
        statistics=_STATISTICS,
        made_of={},
        recipe={},
        listing_digest="",
        fingerprint="",
        tables={SHARDS_TABLE: table_sha256},
        digest=f"digest of {name}",
    )


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


_STATISTICS = DatasetStatistics(
    label_counts=(0,),
    num_multi_label=0,
    formats={},
    width_min=0,
    width_max=0,
    width_mean=0,
    height_min=0,
    height_max=0,
    height_mean=0,
    short_sides={},
    aspects={},
    channel_mean=None,
    channel_std=None,
)
