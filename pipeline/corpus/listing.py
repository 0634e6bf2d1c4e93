"""Sources -> one listing, in two passes over what they find.

The first writes it to this machine's disk and learns which labels there are; then the class table is known; the second
turns labels into numbers, leaves out what cannot be used, and thins sources that have weights. One chunk is in memory
at a time. Which share of a source is taken is chosen by the hash of each image's key, so that more images change little
of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.disk_table import DiskTable, DiskTableWriter, ExternalSorter
from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Stores
from pipeline.corpus.class_table import load_classes
from pipeline.corpus.labels import REASONS, ClassTable, LabelMapping, LabelsSeen, SourceLabels, encode_labels, resolve
from pipeline.corpus.recipe import SourceRecipe
from pipeline.corpus.sources import KINDS
from pipeline.corpus.sources.location import SourceLocation, probe_location
from pipeline.corpus.sources.readers import InterleavedReader
from pipeline.corpus.sources.source import IMAGE_SUFFIXES, Source
from pipeline.records.corpus import (
    FOUND_SCHEMA,
    LISTING_SCHEMA,
    REJECTS_SCHEMA,
    ClassEntry,
    Corpus,
    CorpusReader,
    Reject,
    key_of,
    rejects_table,
)

_MOST = 10_000_000  # repeats that are held in memory: 80 MB
_SCHEMA = pa.schema([("origin", pa.string()), ("position", pa.int64())])


class TooManyRepeatsError(ValueError):
    """More rows repeat an earlier one than are kept in memory."""


def repeated(rows: DiskTable) -> NDArray[np.int64]:
    """The positions of *rows* whose ``origin`` stands at an earlier position too, ascending."""
    spool = ExternalSorter(_SCHEMA, rows.num_rows, "origin")
    start = 0
    for chunk in rows.chunks():
        origins = chunk.column("origin")
        position = pa.array(np.arange(start, start + chunk.num_rows))
        keys = np.fromiter(map(hash, origins.to_pylist()), np.int64, chunk.num_rows).view(np.uint64)
        spool.add(pa.table([origins, position], schema=_SCHEMA), keys)
        start += chunk.num_rows
    found: list[NDArray[np.int64]] = []
    for bucket in spool.in_order():
        found.append(_repeated_in(bucket))
        if sum(map(len, found)) > _MOST:
            raise TooManyRepeatsError
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def _repeated_in(bucket: pa.Table) -> NDArray[np.int64]:
    """Those of a *bucket* in which equal origins stand together: all but the first of each."""
    ordered = bucket.sort_by([("origin", "ascending"), ("position", "ascending")])
    origins = ordered.column("origin").combine_chunks()
    if len(origins) < 2:
        return np.empty(0, np.int64)
    same = pc.equal(origins[1:], origins[:-1]).to_numpy(zero_copy_only=False)
    positions: NDArray[np.int64] = ordered.column("position").to_numpy()
    again: NDArray[np.int64] = positions[1:][same]
    return again


@dataclass(frozen=True)
class NamedSource:
    """A source with its place in the joined corpus: *name* leads its origins unless it is empty."""

    source: Source
    name: str = ""
    weight: float | None = None


class ConcatReader:
    """Several readers as one: the column ``source`` says whose each row is."""

    def __init__(self, readers: Sequence[CorpusReader]) -> None:
        self._readers = dict(enumerate(readers))

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader. Each reader gets its rows in their order."""
        return InterleavedReader(entries.column("source").to_pylist(), entries, self._readers)


@dataclass(frozen=True)
class _Listed:
    """What the first pass learned of one source."""

    part: NamedSource
    said: SourceLabels
    entries: DiskTable
    rejects: DiskTable
    repeats: NDArray[np.int64]

    @property
    def num_listed(self) -> int:
        return self.entries.num_rows + self.rejects.num_rows


def concat(parts: Sequence[NamedSource], classes: Sequence[ClassEntry] = ()) -> Corpus:
    """List *parts* as one corpus, with the class table *classes* if it is given.

    Raises InputError when nothing is found, when weights stand at some parts only, or labels do not go together.
    """
    if len({part.weight is None for part in parts}) > 1:
        raise InputError("some sources have a weight and some have none", "give all of them one, or none")
    if len({part.name for part in parts}) < len(parts):
        raise InputError("two sources have the same name", "their names lead the origins: give each its own")
    listed = [_list(part) for part in parts]
    table = resolve([one.said for one in listed], classes)
    second = _SecondPass(table)
    shares = _shares(listed)
    taken = [second.add(number, one, shares[number]) for number, one in enumerate(listed)]
    entries, rejects = second.close()
    readers = [part.source.reader for part in parts]
    return Corpus(
        entries=entries,
        classes=table.classes,
        reader=readers[0] if len(readers) == 1 else ConcatReader(readers),
        rejects=rejects,
        made_of={"sources": [_told(*pair) for pair in zip(listed, taken, strict=True)], "labels": second.labels},
        random_access=all(part.source.random_access for part in parts),
    )


def _told(listed: _Listed, num_taken: int) -> dict[str, Any]:
    """What the card says of a source. Both numbers count what was rejected too: input is what was taken."""
    part = listed.part
    told = {"kind": part.source.kind, "name": part.name, "weight": part.weight}
    return told | {"num_listed": listed.num_listed, "num_taken": num_taken}


def _list(part: NamedSource) -> _Listed:
    """The first pass over one source."""
    entries, rejects, seen = DiskTableWriter(FOUND_SCHEMA), DiskTableWriter(REJECTS_SCHEMA), LabelsSeen()
    for found in part.source.chunks():
        entries.add(_led(found.entries, part.name))
        rejects.add(_led(rejects_table(found.rejects), part.name))
        seen.add(found.entries.column("labels"))
    rows = entries.close()
    try:
        repeats = repeated(rows) if part.source.may_repeat else np.empty(0, np.int64)
    except TooManyRepeatsError:
        raise InputError("the manifest names more than ten million images twice", "remove those rows") from None
    said = SourceLabels(part.name or "0", seen, part.source.labels_are, part.source.declared)
    return _Listed(part, said, rows, rejects.close(), repeats)


def _led(table: pa.Table, name: str) -> pa.Table:
    """*table* with the source's *name* before its origins."""
    if not name or not table.num_rows:
        return table
    origins = pc.binary_join_element_wise(pa.scalar(name), table.column("origin"), "/")
    return table.set_column(0, table.schema.field("origin"), origins)


def _shares(listed: Sequence[_Listed]) -> list[float]:
    """The share of each source that is taken: in proportion to weight / size, the scarcest one whole."""
    if listed[0].part.weight is None:
        return [1.0] * len(listed)
    ratios = [one.part.weight / max(1, one.num_listed) for one in listed]  # type: ignore[operator] # all have one
    return [ratio / max(ratios) for ratio in ratios]


class _SecondPass:
    def __init__(self, table: ClassTable) -> None:
        self._table = table
        self._entries, self._rejects = DiskTableWriter(LISTING_SCHEMA), DiskTableWriter(REJECTS_SCHEMA)
        self._several = False

    @property
    def labels(self) -> str:
        """``none``, ``single`` or ``multi``: over what was taken."""
        if not any(meaning.is_labelled for meaning in self._table.meanings):
            return "none"
        return "multi" if self._several else "single"

    def add(self, number: int, listed: _Listed, share: float) -> int:
        """Take in what source *number* listed; how many images were taken of it, rejected ones among them."""
        taken, start = 0, 0
        meaning = self._table.meanings[number]
        for chunk in listed.entries.chunks():
            stop = start + chunk.num_rows
            repeats = listed.repeats[np.searchsorted(listed.repeats, start) : np.searchsorted(listed.repeats, stop)]
            chosen = _chosen(chunk, share)
            self._add_chunk(number, chunk, meaning, chosen, repeats - start)
            taken, start = taken + int(chosen.sum()), stop
        for chunk in listed.rejects.chunks():
            chosen = _chosen(chunk, share)
            self._rejects.add(chunk.filter(pa.array(chosen)))
            taken += int(chosen.sum())
        return taken

    def close(self) -> tuple[DiskTable, DiskTable]:
        """Entries and rejects."""
        return self._entries.close(), self._rejects.close()

    def _add_chunk(
        self,
        number: int,
        chunk: pa.Table,
        meaning: LabelMapping,
        chosen: NDArray[np.bool_],
        repeats: NDArray[np.int64],
    ) -> None:
        labels, wrong = encode_labels(chunk.column("labels"), meaning)
        is_repeat = np.zeros(chunk.num_rows, bool)
        is_repeat[repeats] = True
        kept = chosen & ~is_repeat & (wrong == 0)
        if (wrong != 0).any() or len(repeats):
            self._reject(chunk, chosen, wrong, is_repeat)
        columns = [chunk.column(name) for name in FOUND_SCHEMA.names[:-1]]
        table = pa.table([*columns, pa.array(np.full(chunk.num_rows, number, np.int16)), labels], schema=LISTING_SCHEMA)
        entries = table if kept.all() else table.filter(pa.array(kept))
        self._entries.add(entries)
        if not self._several and meaning.is_labelled:
            self._several = bool(pc.any(pc.not_equal(pc.list_value_length(entries.column("labels")), 1)).as_py())

    def _reject(
        self, chunk: pa.Table, chosen: NDArray[np.bool_], wrong: NDArray[np.int32], is_repeat: NDArray[np.bool_]
    ) -> None:
        rejects = []
        for at in np.flatnonzero(chosen & (is_repeat | (wrong != 0))):
            origin = chunk.column("origin")[int(at)].as_py()
            if is_repeat[at]:
                rejects.append(Reject(origin, "path-repeated", "an earlier row names the same image"))
            else:
                texts = chunk.column("labels")[int(at)].as_py()
                rejects.append(
                    Reject(origin, REASONS[int(wrong[at])], "" if texts is None else ", ".join(map(str, texts))[:100])
                )
        self._rejects.add(rejects_table(rejects))


def _chosen(chunk: pa.Table, share: float) -> NDArray[np.bool_]:
    """Which rows belong to the *share* of a source that is taken. Independent of what else is drawn by the key."""
    if share >= 1:
        return np.ones(chunk.num_rows, bool)
    limit = int(share * 2**64)
    draws = (
        hashlib.blake2b(key_of(origin).encode(), digest_size=8, person=b"vitpipe.weight").digest()
        for origin in chunk.column("origin").to_pylist()
    )
    return np.fromiter((int.from_bytes(draw, "big") < limit for draw in draws), bool, chunk.num_rows)


_CONTAINERS = ("parquet", "tar", "tgz", "tar.gz")
_IMAGES = tuple(sorted(IMAGE_SUFFIXES - {""}))


def open_corpus(
    sources: str | Sequence[SourceRecipe], stores: Stores | None = None, classes: str | None = None
) -> Corpus:
    """List the corpus of *sources*: one place, or several joined. *classes* is the path or URI of a class table.

    Raises InputError when a source is missing, holds no image, or cannot be told; see ``concat`` for the rest.
    """
    recipes = [SourceRecipe(source=sources)] if isinstance(sources, str) else list(sources)
    if not recipes:
        raise InputError("no source was named", "name a folder, a file or an s3:// prefix")
    table = load_classes(classes, stores) if classes else ()
    several = len(recipes) > 1
    parts = [
        NamedSource(_open(recipe, stores), recipe.name or (str(number) if several else ""), recipe.weight)
        for number, recipe in enumerate(recipes)
    ]
    return concat(parts, table)


def _open(recipe: SourceRecipe, stores: Stores | None) -> Source:
    place = probe_location(recipe.source, stores)
    if recipe.kind != "auto":
        named = next(kind for kind in KINDS if kind.name == recipe.kind)
        if not named.matches(place):
            raise InputError(f"nothing of the kind {recipe.kind!r} in {recipe.source}", "leave the kind out to look")
        return named.open(place)
    _refuse_mixtures(place)
    for kind in KINDS:
        if kind.matches(place):
            return kind.open(place)
    suffixes = ", ".join(sorted(suffix or "no suffix" for suffix in place.suffixes)[:20])
    raise InputError(
        f"no images in {recipe.source}" + (f" (only: {suffixes})" if suffixes else " (it is empty)"),
        f"expected tars, parquet files, a manifest, or images ({', '.join(_IMAGES)})",
    )


def _refuse_mixtures(place: SourceLocation) -> None:
    """Refuse to guess where a guess would leave images out: what is more than a few pictures beside a data set."""
    num_images, num_containers = place.count(*_IMAGES), place.count(*_CONTAINERS)
    num_tars = num_containers - place.count("parquet")
    is_own = num_tars and place.store.head("dataset.json") is not None  # vitpipe's tars, and the indexes beside them
    if num_containers and num_images > num_containers:
        told = f"{num_images} images beside {num_containers} tars or parquet files"
    elif num_tars and place.count("parquet") and not is_own:
        told = "tars beside parquet files"
    else:
        return
    raise InputError(f"{place.uri} holds {told}", "say which are meant: kind folder, webdataset or parquet")
