"""Commit a dataset: the lease while it is made, the three tables, the card, create-only, then the sweep.

Before the card there is no dataset.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import differing_fields, fingerprint, sha256_hex
from pipeline.base.disk_table import read_parquet
from pipeline.base.errors import ConflictError, DamageError, MismatchError
from pipeline.base.failpoints import fail_point
from pipeline.base.lease import Lease, take, take_over
from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.store.protocol import Store
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
from pipeline.records.record import Record, read_record
from pipeline.shard.index import ShardStatistics, index_name
from pipeline.shard.plan import listing_digest
from pipeline.shard.recipe import ShardRecipe

LEASE_KEY = f"{WORK}/claim.json"
_FORMAT = 3  # raise it when equal input and recipe would give other bytes than before


class DatasetFingerprint(Record):
    """``fingerprint`` is over everything that fixes a dataset's bytes, given the images themselves."""

    recipe: dict[str, Any]
    listing_digest: str
    fingerprint: str


class ShardLease(DatasetFingerprint):
    """What is being made, and the process that began with it last, as ``ProcessIdentity.place_text`` and number.

    It counts until the dataset has its card. Two live processes may make one dataset side by side: they write the same.
    """

    place: str = ""
    pid: int = 0

    @property
    def process(self) -> ProcessIdentity:
        """The process that makes the dataset; without its start time, which is not stored."""
        return ProcessIdentity.from_place(self.place, self.pid)


def fingerprint_dataset(corpus: Corpus, recipe: ShardRecipe, provenance: dict[str, Any]) -> DatasetFingerprint:
    """Of the *corpus* as listed, the recipe, and its *provenance*: what is done to it before it is sharded."""
    settings = recipe.model_dump(mode="json") | provenance
    digest = fingerprint([listing_digest(corpus.entries, corpus.classes), corpus.rejects.num_rows])
    total = fingerprint([_FORMAT, settings, digest, corpus.class_names])
    return DatasetFingerprint(recipe=settings, listing_digest=digest, fingerprint=total)


def is_consistent(card: DatasetCard) -> bool:
    """True when the card's fingerprint is that of the recipe, listing and class names beside it."""
    return card.fingerprint == fingerprint([_FORMAT, card.recipe, card.listing_digest, card.class_names])


def find_existing(target: Store, identity: DatasetFingerprint) -> DatasetCard | None:
    """The card at *target*, or None. Raises MismatchError when it was made from something else."""
    try:
        card = read_record(DatasetCard, target, CARD)
    except FileNotFoundError:
        return None
    if card.fingerprint == identity.fingerprint:
        return card
    fields = _differences(identity, card.recipe, card.listing_digest)
    raise MismatchError(
        f"{target.uri} exists and was made from something else: {'; '.join(fields)}", "give another --name"
    )


def take_lease(target: Store, identity: DatasetFingerprint) -> None:
    """Record, create-only, what is being made at *target*, so that no two datasets are written over each other.

    An attempt that died leaves its lease to the next one that makes the same dataset, which takes it over. Raises
    ConflictError when the existing lease is of another dataset.
    """
    process = ProcessIdentity.current()
    own = ShardLease(**identity.model_dump(), place=process.place_text, pid=process.pid).to_json()
    if take(target, LEASE_KEY, own):
        return
    existing = read_record(ShardLease, target, LEASE_KEY)
    if existing.fingerprint == identity.fingerprint:
        take_over(target, LEASE_KEY, own, Lease(existing.process), time.time())
        return
    fields = _differences(identity, existing.recipe, existing.listing_digest)
    raise ConflictError(
        f"{target.uri} is being made from something else, or was left unfinished: {'; '.join(fields)}",
        "give another --name, or let that end; if nobody makes it any more: vitpipe gc",
    )


def _differences(identity: DatasetFingerprint, recipe: dict[str, Any], listing_digest: str) -> list[str]:
    new = {"recipe": identity.recipe, "listing_digest": identity.listing_digest}
    existing = {"recipe": recipe, "listing_digest": listing_digest}
    return differing_fields(new, existing) or ["format: made by another release"]


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
        fail_point(f"shard.before-{name}")
        with target.incoming(name) as path:
            _write_table(path, schema, chunks)
            digests[name] = _sha256(path)
            if expected.get(name, digests[name]) != digests[name]:
                raise DamageError(
                    f"{target.uri}/{name} cannot be made again: the source has changed",
                    "shard the corpus under another name",
                )
    return digests


def _write_table(path: Path, schema: pa.Schema, chunks: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(str(path), schema, compression="zstd") as writer:
        for chunk in chunks:
            writer.write_table(chunk)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_shards(target: Store, card: DatasetCard) -> list[ShardEntry]:
    """The shards of a dataset. Raises DamageError when the table is not the one that the card names."""
    try:
        data = target.read(SHARDS_TABLE)
    except FileNotFoundError:
        raise DamageError(f"{target.uri}/{SHARDS_TABLE} is missing", "shard the dataset again") from None
    if sha256_hex(data) != card.tables[SHARDS_TABLE]:
        raise DamageError(f"{target.uri}/{SHARDS_TABLE} is damaged", "shard the dataset again")
    return [ShardEntry.model_validate(row) for row in read_parquet(data).to_pylist()]


def make_card(
    name: str,
    corpus: Corpus,
    identity: DatasetFingerprint,
    shards: list[ShardEntry],
    statistics: ShardStatistics,
    num_rejected: int,
    tables: dict[str, str],
) -> DatasetCard:
    """The card of a written dataset, of which *identity* is the fingerprint."""
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
    """Put the card, create-only. Another writer's card of the same dataset is no conflict, of a different one it is."""
    fail_point("shard.before-card")
    created = target.put_if_absent(CARD, card.to_json())
    fail_point("shard.after-card")
    if created:
        return card
    existing = read_record(DatasetCard, target, CARD)
    if existing != card:
        fields = differing_fields(card.model_dump(mode="json"), existing.model_dump(mode="json"))
        raise ConflictError(f"{target.uri}: another writer published a different dataset: {'; '.join(fields[:3])}")
    return existing


def sweep(target: Store, shards: list[ShardEntry]) -> int:
    """Remove what no card names: the plan, spilled images, shards of other attempts. How many objects that was."""
    named = {CARD, SHARDS_TABLE, REJECTS_TABLE, DUPLICATES_TABLE}
    named |= {shard.name for shard in shards} | {index_name(shard.name) for shard in shards}
    swept = 0
    for key in _unnamed(target, named):
        target.delete(key)
        swept += 1
        fail_point("shard.in-sweep")
    swept += target.sweep()
    target.prune()
    return swept


def _unnamed(target: Store, named: set[str]) -> Iterator[str]:
    for info in list(target.list()):
        is_of_sharding = info.key.startswith((f"{WORK}/", "shard-"))
        if is_of_sharding and info.key not in named:
            yield info.key
