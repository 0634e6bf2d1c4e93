"""Commit a dataset: the three tables, then the card, create-only, then sweep. Before the card there is no dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import differing_fields, sha256_hex
from pipeline.base.errors import ConflictError, DamageError
from pipeline.base.failpoints import reach
from pipeline.base.store import Store
from pipeline.base.tables import read_parquet
from pipeline.records.corpus import DUPLICATES_SCHEMA, REJECTS_SCHEMA, Corpus
from pipeline.records.dataset import (
    CARD,
    DUPLICATES_TABLE,
    REJECTS_TABLE,
    SHARDS_SCHEMA,
    SHARDS_TABLE,
    WORK,
    DatasetCard,
    ShardEntry,
    dataset_digest,
)
from pipeline.records.record import read_record
from pipeline.shard.identity import Identity
from pipeline.shard.statistics import ShardStatistics
from pipeline.shard.write import index_name


def put_tables(
    target: Store,
    shards: list[ShardEntry],
    rejects: Iterable[pa.Table],
    duplicates: Iterable[pa.Table],
    expected: dict[str, str],
) -> dict[str, str]:
    """Write the tables of shards, rejects and duplicates; their digests by name.

    Raises DamageError, and replaces nothing, when a table has another digest than *expected*, where that names one.
    """
    listed = pa.Table.from_pylist([shard.model_dump() for shard in shards], schema=SHARDS_SCHEMA)
    tables: list[tuple[str, pa.Schema, Iterable[pa.Table]]] = [
        (SHARDS_TABLE, SHARDS_SCHEMA, [listed]),
        (REJECTS_TABLE, REJECTS_SCHEMA, rejects),
        (DUPLICATES_TABLE, DUPLICATES_SCHEMA, duplicates),
    ]
    digests = {}
    for name, schema, chunks in tables:
        reach(f"shard.before-{name}")
        with target.incoming(name) as path:
            _write_table(path, schema, chunks)
            digests[name] = _sha256(path)
            if expected.get(name, digests[name]) != digests[name]:
                raise DamageError(
                    f"{target.uri}/{name} cannot be made again: the source has changed",
                    "shard the corpus under another name",
                )
    return digests


def read_shards(target: Store, card: DatasetCard) -> list[ShardEntry]:
    """The shards of a dataset. Raises DamageError when the table is not the one that the card names."""
    try:
        data = target.read(SHARDS_TABLE)
    except FileNotFoundError:
        raise DamageError(f"{target.uri}/{SHARDS_TABLE} is missing", "shard the dataset again") from None
    if sha256_hex(data) != card.tables[SHARDS_TABLE]:
        raise DamageError(f"{target.uri}/{SHARDS_TABLE} is damaged", "shard the dataset again")
    return [ShardEntry.model_validate(row) for row in read_parquet(data).to_pylist()]


def _write_table(path: Path, schema: pa.Schema, chunks: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(str(path), schema, compression="zstd") as writer:
        for chunk in chunks:
            writer.write_table(chunk)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_card(
    name: str,
    corpus: Corpus,
    identity: Identity,
    shards: list[ShardEntry],
    statistics: ShardStatistics,
    num_rejected: int,
    tables: dict[str, str],
) -> DatasetCard:
    """The card of a written dataset. *identity* says what it is made of (see ``identity.py``)."""
    has_table = any(entry.synset or entry.parent for entry in corpus.classes)
    return DatasetCard(
        name=name,
        class_names=corpus.class_names,
        class_table=corpus.classes if has_table else (),
        num_input=corpus.num_input,
        num_samples=sum(shard.num_samples for shard in shards),
        num_rejected=num_rejected,
        num_duplicates=corpus.duplicates.num_rows,
        num_bytes=sum(shard.num_bytes for shard in shards),
        num_shards=len(shards),
        statistics=statistics.summary(len(corpus.classes)),
        made_of=corpus.made_of,
        recipe=identity.recipe,
        listing_digest=identity.listing_digest,
        fingerprint=identity.fingerprint,
        tables=tables,
        digest=dataset_digest([shard.sha256 for shard in shards]),
    )


def publish(target: Store, card: DatasetCard) -> DatasetCard:
    """Put the card, create-only. A racer that made the same dataset is no conflict; another one is."""
    reach("shard.before-card")
    created = target.put_if_absent(CARD, card.to_json())
    reach("shard.after-card")
    if created:
        return card
    theirs = read_record(DatasetCard, target, CARD)
    if theirs != card:
        fields = differing_fields(card.model_dump(mode="json"), theirs.model_dump(mode="json"))
        raise ConflictError(f"{target.uri}: another writer published a different dataset: {'; '.join(fields[:3])}")
    return theirs


def sweep(target: Store, shards: list[ShardEntry]) -> int:
    """Remove what no card names: the plan, spilled images, shards of other attempts. How many objects that was."""
    named = {CARD, SHARDS_TABLE, REJECTS_TABLE, DUPLICATES_TABLE}
    named |= {shard.name for shard in shards} | {index_name(shard.name) for shard in shards}
    swept = 0
    for key in _unnamed(target, named):
        target.delete(key)
        swept += 1
        reach("shard.in-sweep")
    swept += target.sweep()
    target.prune()
    return swept


def _unnamed(target: Store, named: set[str]) -> Iterator[str]:
    for info in list(target.list()):
        ours = info.key.startswith((f"{WORK}/", "shard-"))
        if ours and info.key not in named:
            yield info.key
