"""Commit a dataset: the two tables, then the card, create-only. Before the card there is no dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.digests import differing_fields, sha256_hex
from pipeline.base.errors import ConflictError
from pipeline.base.store import Store
from pipeline.base.store.reading import open_object
from pipeline.records.corpus import REJECTS_SCHEMA, Reject
from pipeline.records.dataset import (
    CARD,
    REJECTS_TABLE,
    SHARDS_SCHEMA,
    SHARDS_TABLE,
    DatasetCard,
    DatasetStatistics,
    ShardEntry,
    dataset_digest,
)
from pipeline.records.record import read_record
from pipeline.shard.write import index_name, parquet_bytes


def statistics_of(target: Store, shards: list[ShardEntry], num_classes: int) -> DatasetStatistics:
    """Counts over the indexes of *shards*, one index in memory at a time."""
    labels: Counter[int] = Counter()
    formats: Counter[str] = Counter()
    extremes = [2**31, 0, 2**31, 0]
    for shard in shards:
        with open_object(target, index_name(shard.name)) as file:
            table = pq.read_table(file, columns=["labels", "format", "width", "height"])
        for value in pc.value_counts(pc.list_flatten(table["labels"].combine_chunks())):
            labels[value["values"].as_py()] += value["counts"].as_py()
        formats.update(table["format"].to_pylist())
        width, height = pc.min_max(table["width"]).as_py(), pc.min_max(table["height"]).as_py()
        extremes = [
            min(extremes[0], width["min"]),
            max(extremes[1], width["max"]),
            min(extremes[2], height["min"]),
            max(extremes[3], height["max"]),
        ]
    return DatasetStatistics(
        label_counts=tuple(labels[index] for index in range(num_classes)),
        formats=dict(sorted(formats.items())),
        width_min=extremes[0],
        width_max=extremes[1],
        height_min=extremes[2],
        height_max=extremes[3],
    )


def put_tables(target: Store, shards: list[ShardEntry], rejects: Iterable[Reject]) -> dict[str, str]:
    """Write shards.parquet and rejects.parquet; their digests by name."""
    rejected = sorted((asdict(reject) for reject in rejects), key=lambda row: row["origin"])
    tables = {
        SHARDS_TABLE: pa.Table.from_pylist([shard.model_dump() for shard in shards], schema=SHARDS_SCHEMA),
        REJECTS_TABLE: pa.Table.from_pylist(rejected, schema=REJECTS_SCHEMA),
    }
    digests = {}
    for name, table in tables.items():
        data = parquet_bytes(table)
        target.put(name, data)
        digests[name] = sha256_hex(data)
    return digests


def make_card(  # noqa: PLR0913 - a card is made of all this, once, in one place
    *,
    name: str,
    class_names: tuple[str, ...],
    num_input: int,
    num_rejected: int,
    shards: list[ShardEntry],
    statistics: DatasetStatistics,
    recipe: dict[str, Any],
    listing_digest: str,
    format_fingerprint: str,
    tables: dict[str, str],
) -> DatasetCard:
    """The card of a written dataset."""
    return DatasetCard(
        name=name,
        class_names=class_names,
        num_input=num_input,
        num_samples=sum(shard.num_samples for shard in shards),
        num_rejected=num_rejected,
        num_duplicates=0,
        num_bytes=sum(shard.num_bytes for shard in shards),
        num_shards=len(shards),
        statistics=statistics,
        recipe=recipe,
        listing_digest=listing_digest,
        fingerprint=format_fingerprint,
        tables=tables,
        digest=dataset_digest([shard.sha256 for shard in shards]),
    )


def publish(target: Store, card: DatasetCard) -> DatasetCard:
    """Put the card, create-only. A racer that made the same dataset is no conflict; another one is."""
    if target.put_if_absent(CARD, card.to_json()):
        return card
    theirs = read_record(DatasetCard, target, CARD)
    if theirs != card:
        fields = differing_fields(card.model_dump(mode="json"), theirs.model_dump(mode="json"))
        raise ConflictError(f"{target.uri}: another writer published a different dataset: {'; '.join(fields[:3])}")
    return theirs
