"""Datasets for tests: made of seeded random PNGs by the stage's own steps, called in turn, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.disk_table import DiskTable
from pipeline.base.seeds import derive
from pipeline.base.store import Store, open_store
from pipeline.records.corpus import LISTING_SCHEMA, ClassEntry, Corpus, Reject, rejects_table
from pipeline.records.dataset import DatasetCard, ShardEntry, dataset_prefix
from pipeline.shard.commit import fingerprint_dataset, make_card, publish, put_tables, sweep
from pipeline.shard.index import ShardStatistics
from pipeline.shard.plan import plan_shards
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.writer import plan_digest, write_shard
from tests.support.pictures import noise, png


@dataclass(frozen=True)
class MemoryReader:
    """Reads images from a mapping. An origin that is not in it is a missing file; a None is a null image."""

    images: Mapping[str, bytes | None]

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _Images(self.images, entries.column("origin").to_pylist())


class _Images(Iterator[bytes | None]):
    def __init__(self, images: Mapping[str, bytes | None], origins: list[str]) -> None:
        self._images, self._origins = images, iter(origins)

    def __next__(self) -> bytes | None:
        origin = next(self._origins)
        if origin not in self._images:
            raise FileNotFoundError(origin)
        return self._images[origin]


def listing_of(images: Mapping[str, bytes | None], labels: Mapping[str, list[int]]) -> pa.Table:
    """A listing of *images* by origin."""
    origins = list(images)
    columns = {
        "origin": origins,
        "file": origins,
        "row": [-1] * len(origins),
        "offset": [-1] * len(origins),
        "num_bytes": [len(images[origin] or b"") for origin in origins],
        "etag": [""] * len(origins),
        "source": [0] * len(origins),
        "labels": [labels.get(origin, []) for origin in origins],
    }
    return pa.table(columns, schema=LISTING_SCHEMA)


def corpus_of(
    images: Mapping[str, bytes | None],
    labels: Mapping[str, list[int]],
    class_names: tuple[str, ...],
    rejects: tuple[Reject, ...] = (),
) -> Corpus:
    """A corpus of *images* in memory."""
    return Corpus(
        entries=DiskTable.of(listing_of(images, labels)),
        classes=tuple(ClassEntry(name=name) for name in class_names),
        reader=MemoryReader(images),
        rejects=DiskTable.of(rejects_table(list(rejects))),
    )


def random_corpus(num_samples: int, num_classes: int, size: int = 28, seed: int = 0) -> Corpus:
    """``class-0/00000.png`` and so on: sample i is of class ``i % num_classes``, its pixels are noise of (seed, i)."""
    names = [f"class-{at % num_classes}/{at:05d}.png" for at in range(num_samples)]
    images: dict[str, bytes | None] = {
        name: png(noise(size, size, derive(seed, "picture", at)), compress_level=1) for at, name in enumerate(names)
    }
    labels = {name: [at % num_classes] for at, name in enumerate(names)}
    return corpus_of(images, labels, tuple(f"class-{label}" for label in range(num_classes)))


def shard_corpus(workspace: Store, name: str, corpus: Corpus, recipe: ShardRecipe) -> DatasetCard:
    """Shard *corpus* as dataset *name* of *workspace*: plan, write, tables, card, sweep; without Ray."""
    target = open_store(f"{workspace.uri}/{dataset_prefix(name)}")
    shards: list[ShardEntry] = []
    rejects = [Reject(**row) for row in corpus.rejects.table().to_pylist()]
    statistics = ShardStatistics()
    for shard in plan_shards(corpus.entries, recipe):
        written = write_shard(shard, corpus.reader, target, plan_digest(shard, "test"), recipe)
        rejects += written.rejects
        statistics.merge(written.statistics)
        if written.entry is not None:
            shards.append(written.entry)
    tables = put_tables(target, shards, [rejects_table(rejects)], corpus.duplicates.chunks(), {})
    identity = fingerprint_dataset(corpus, recipe, {})
    card = publish(target, make_card(name, corpus, identity, shards, statistics, len(rejects), tables))
    sweep(target, shards)
    return card


def make_dataset(
    workspace_store: Store,
    name: str,
    *,
    num_samples: int = 60,
    num_classes: int = 4,
    size: int = 28,
    max_samples: int = 16,
    seed: int = 0,
) -> DatasetCard:
    """A complete dataset of random pictures in *workspace_store*; equal arguments give equal bytes."""
    corpus = random_corpus(num_samples, num_classes, size, seed)
    return shard_corpus(workspace_store, name, corpus, ShardRecipe(max_samples=max_samples))
