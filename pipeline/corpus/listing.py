"""``open_corpus``: sources -> one listing, in two passes over what they list.

The first pass writes it to this machine's disk and learns which labels there are; then the class table is known. The
second turns labels into numbers, leaves out what cannot be used, and thins sources that have weights. One chunk is in
memory at a time. Which share of a source is taken is chosen by the hash of each image's key, so that more images change
little of it.
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
from pipeline.corpus.labels import (
    REASONS,
    ClassTable,
    LabelMapping,
    LabelsSeen,
    SourceLabels,
    build_class_table,
    encode_labels,
)
from pipeline.corpus.recipe import AUTO, SourceRecipe
from pipeline.corpus.sources import KINDS
from pipeline.corpus.sources.location import IMAGE_SUFFIXES, SourceLocation, probe_location
from pipeline.corpus.sources.readers import InterleavedReader
from pipeline.corpus.sources.source import Source
from pipeline.records.corpus import (
    LISTING_SCHEMA,
    REJECTS_SCHEMA,
    SOURCE_SCHEMA,
    ClassEntry,
    Corpus,
    CorpusReader,
    Reject,
    key_of,
    rejects_table,
)

_IMAGES = tuple(sorted(IMAGE_SUFFIXES - {""}))
_TARS = ("tar", "tgz", "tar.gz")
_MAX_REPEATS = 10_000_000  # rows that repeat an earlier one, whose positions are in memory: 80 MB
_ORIGINS_SCHEMA = pa.schema([("origin", pa.string()), ("position", pa.int64())])


def open_corpus(
    sources: str | Sequence[SourceRecipe], stores: Stores | None = None, classes: str | None = None
) -> Corpus:
    """List the corpus of *sources*: one location, or several joined. *classes* is the path or URI of a class table.

    Raises InputError when a source is missing, holds no image, or its kind cannot be guessed; see ``concat`` for the
    rest.
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
    containers = {suffix for kind in KINDS.values() for suffix in kind.containers}
    location = probe_location(recipe.source, stores, containers)
    if recipe.kind != AUTO:
        chosen = KINDS[recipe.kind]
        if not chosen.matches(location):
            raise InputError(f"nothing of the kind {recipe.kind!r} in {recipe.source}", "leave the kind out to look")
        return chosen.open(location)
    _refuse_mixtures(location, containers)
    for kind in KINDS.values():
        if kind.matches(location):
            return kind.open(location)
    suffixes = ", ".join(sorted(suffix or "no suffix" for suffix in location.suffixes)[:20])
    raise InputError(
        f"no images in {recipe.source}" + (f" (only: {suffixes})" if suffixes else " (it is empty)"),
        f"expected tars, parquet files, a manifest, or images ({', '.join(_IMAGES)})",
    )


def _refuse_mixtures(location: SourceLocation, containers: set[str]) -> None:
    """Refuse to guess where a guess would leave images out: what is more than a few pictures beside a data set."""
    num_images, num_containers = location.count(*_IMAGES), location.count(*containers)
    num_tars, num_parquet = location.count(*_TARS), location.count("parquet")
    is_own = num_tars and location.store.head("dataset.json") is not None  # vitpipe's tars, and the indexes beside them
    is_known = num_tars + num_parquet == num_containers
    if num_containers and num_images > num_containers:
        files = "tars or parquet files" if is_known else "files of many images"
        mixture = f"{num_images} images beside {num_containers} {files}"
    elif num_tars and num_parquet and not is_own:
        mixture = "tars beside parquet files"
    else:
        return
    kinds = "kind folder, webdataset or parquet" if is_known else "name the kind"
    raise InputError(f"{location.uri} holds {mixture}", f"say which are meant: {kinds}")


@dataclass(frozen=True)
class NamedSource:
    """A source of a joined corpus. *name* leads its origins unless it is empty; *weight* is relative to the others."""

    source: Source
    name: str = ""
    weight: float | None = None


def concat(parts: Sequence[NamedSource], classes: Sequence[ClassEntry] = ()) -> Corpus:
    """List *parts* as one corpus, with the class table *classes* unless it is empty.

    Raises InputError when nothing is listed, when only some parts have weights, or labels do not go together.
    """
    if len({part.weight is None for part in parts}) > 1:
        raise InputError("some sources have a weight and some have none", "give all of them one, or none")
    if len({part.name for part in parts}) < len(parts):
        raise InputError("two sources have the same name", "their names lead the origins: give each its own")
    listed = [_list(part) for part in parts]
    table = build_class_table([source.labels for source in listed], classes)
    second = _SecondPass(table)
    shares = _shares(listed)
    taken = [second.add(number, source, shares[number]) for number, source in enumerate(listed)]
    entries, rejects = second.close()
    readers = [part.source.reader for part in parts]
    return Corpus(
        entries=entries,
        classes=table.classes,
        reader=readers[0] if len(readers) == 1 else ConcatReader(readers),
        rejects=rejects,
        made_of={"sources": [_provenance(*pair) for pair in zip(listed, taken, strict=True)], "labels": second.labels},
        random_access=all(part.source.random_access for part in parts),
    )


class ConcatReader:
    """Several readers as one: the column ``source`` has the number of the reader of each row."""

    def __init__(self, readers: Sequence[CorpusReader]) -> None:
        self._readers = dict(enumerate(readers))

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader. Each reader gets its rows in their order."""
        return InterleavedReader(entries.column("source").to_pylist(), entries, self._readers)


@dataclass(frozen=True)
class _Listed:
    """What the first pass learned of one source."""

    part: NamedSource
    labels: SourceLabels
    entries: DiskTable
    rejects: DiskTable
    repeats: NDArray[np.int64]  # positions in entries

    @property
    def num_listed(self) -> int:
        return self.entries.num_rows + self.rejects.num_rows


def _provenance(listed: _Listed, num_taken: int) -> dict[str, Any]:
    """What the card says of a source. Both numbers count what was rejected too: input is what was taken."""
    part = listed.part
    description = {"kind": part.source.kind, "name": part.name, "weight": part.weight}
    return description | {"num_listed": listed.num_listed, "num_taken": num_taken}


def _list(part: NamedSource) -> _Listed:
    """The first pass over one source."""
    entries, rejects, seen = DiskTableWriter(SOURCE_SCHEMA), DiskTableWriter(REJECTS_SCHEMA), LabelsSeen()
    for chunk in part.source.chunks():
        entries.add(_with_name(chunk.entries, part.name))
        rejects.add(_with_name(rejects_table(chunk.rejects), part.name))
        seen.add(chunk.entries.column("labels"))
    rows = entries.close()
    try:
        repeats = _find_repeats(rows) if part.source.may_repeat else np.empty(0, np.int64)
    except _TooManyRepeatsError:
        raise InputError("the manifest names more than ten million images twice", "remove those rows") from None
    labels = SourceLabels(part.name or "0", seen, part.source.label_kind, part.source.declared_classes)
    return _Listed(part, labels, rows, rejects.close(), repeats)


def _with_name(table: pa.Table, name: str) -> pa.Table:
    """*table* with the source's *name* before its origins."""
    if not name or not table.num_rows:
        return table
    origins = pc.binary_join_element_wise(pa.scalar(name), table.column("origin"), "/")
    return table.set_column(0, table.schema.field("origin"), origins)


class _TooManyRepeatsError(ValueError):
    """More rows repeat an earlier one than fit into memory."""


def _find_repeats(rows: DiskTable) -> NDArray[np.int64]:
    """The positions of *rows* whose ``origin`` occurs at an earlier position too, ascending."""
    sorter = ExternalSorter(_ORIGINS_SCHEMA, rows.num_rows, "origin")
    start = 0
    for chunk in rows.chunks():
        origins = chunk.column("origin")
        positions = pa.array(np.arange(start, start + chunk.num_rows))
        keys = np.fromiter(map(hash, origins.to_pylist()), np.int64, chunk.num_rows).view(np.uint64)
        sorter.add(pa.table([origins, positions], schema=_ORIGINS_SCHEMA), keys)
        start += chunk.num_rows
    repeats: list[NDArray[np.int64]] = []
    for bucket in sorter.in_order():
        repeats.append(_repeats_in(bucket))
        if sum(map(len, repeats)) > _MAX_REPEATS:
            raise _TooManyRepeatsError
    return np.sort(np.concatenate([np.empty(0, np.int64), *repeats]))


def _repeats_in(bucket: pa.Table) -> NDArray[np.int64]:
    """Those of a *bucket* in which equal origins are side by side: all but the first of each."""
    ordered = bucket.sort_by([("origin", "ascending"), ("position", "ascending")])
    origins = ordered.column("origin").combine_chunks()
    if len(origins) < 2:
        return np.empty(0, np.int64)
    is_repeat = pc.equal(origins[1:], origins[:-1]).to_numpy(zero_copy_only=False)
    positions: NDArray[np.int64] = ordered.column("position").to_numpy()
    repeats: NDArray[np.int64] = positions[1:][is_repeat]
    return repeats


def _shares(listed: Sequence[_Listed]) -> list[float]:
    """The share of each source that is taken: in proportion to weight / size, all of the scarcest."""
    if listed[0].part.weight is None:
        return [1.0] * len(listed)
    # Either all sources have a weight or none has: see concat.
    ratios = [source.part.weight / max(1, source.num_listed) for source in listed]  # type: ignore[operator]
    return [ratio / max(ratios) for ratio in ratios]


class _SecondPass:
    def __init__(self, table: ClassTable) -> None:
        self._table = table
        self._entries, self._rejects = DiskTableWriter(LISTING_SCHEMA), DiskTableWriter(REJECTS_SCHEMA)
        self._is_multi = False

    @property
    def labels(self) -> str:
        """``none``, ``single`` or ``multi``: over what was taken."""
        if not any(mapping.is_labelled for mapping in self._table.mappings):
            return "none"
        return "multi" if self._is_multi else "single"

    def add(self, number: int, listed: _Listed, share: float) -> int:
        """Add what source *number* listed; the number of images that were taken of it, rejected ones among them."""
        num_taken, start = 0, 0
        mapping = self._table.mappings[number]
        for chunk in listed.entries.chunks():
            stop = start + chunk.num_rows
            repeats = listed.repeats[np.searchsorted(listed.repeats, start) : np.searchsorted(listed.repeats, stop)]
            chosen = _choose(chunk, share)
            self._add_chunk(number, chunk, mapping, chosen, repeats - start)
            num_taken, start = num_taken + int(chosen.sum()), stop
        for chunk in listed.rejects.chunks():
            chosen = _choose(chunk, share)
            self._rejects.add(chunk.filter(pa.array(chosen)))
            num_taken += int(chosen.sum())
        return num_taken

    def close(self) -> tuple[DiskTable, DiskTable]:
        """Entries and rejects."""
        return self._entries.close(), self._rejects.close()

    def _add_chunk(
        self,
        number: int,
        chunk: pa.Table,
        mapping: LabelMapping,
        chosen: NDArray[np.bool_],
        repeats: NDArray[np.int64],
    ) -> None:
        labels, wrong = encode_labels(chunk.column("labels"), mapping)
        is_repeat = np.zeros(chunk.num_rows, bool)
        is_repeat[repeats] = True
        usable = chosen & ~is_repeat & (wrong == 0)
        if (wrong != 0).any() or len(repeats):
            self._reject(chunk, chosen, wrong, is_repeat)
        columns = [chunk.column(name) for name in SOURCE_SCHEMA.names[:-1]]
        table = pa.table([*columns, pa.array(np.full(chunk.num_rows, number, np.int16)), labels], schema=LISTING_SCHEMA)
        entries = table if usable.all() else table.filter(pa.array(usable))
        self._entries.add(entries)
        if not self._is_multi and mapping.is_labelled:
            self._is_multi = bool(pc.any(pc.not_equal(pc.list_value_length(entries.column("labels")), 1)).as_py())

    def _reject(
        self, chunk: pa.Table, chosen: NDArray[np.bool_], wrong: NDArray[np.int32], is_repeat: NDArray[np.bool_]
    ) -> None:
        rejects = []
        for index in np.flatnonzero(chosen & (is_repeat | (wrong != 0))):
            origin = chunk.column("origin")[int(index)].as_py()
            if is_repeat[index]:
                rejects.append(Reject(origin, "path-repeated", "an earlier row names the same image"))
            else:
                texts = chunk.column("labels")[int(index)].as_py()
                detail = "" if texts is None else ", ".join(map(str, texts))[:100]
                rejects.append(Reject(origin, REASONS[int(wrong[index])], detail))
        self._rejects.add(rejects_table(rejects))


def _choose(chunk: pa.Table, share: float) -> NDArray[np.bool_]:
    """Which rows belong to the *share* of a source that is taken. Independent of what else is drawn by the key."""
    if share >= 1:
        return np.ones(chunk.num_rows, bool)
    limit = int(share * 2**64)
    draws = (
        hashlib.blake2b(key_of(origin).encode(), digest_size=8, person=b"vitpipe.weight").digest()
        for origin in chunk.column("origin").to_pylist()
    )
    return np.fromiter((int.from_bytes(draw, "big") < limit for draw in draws), bool, chunk.num_rows)
