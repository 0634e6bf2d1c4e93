"""Parts of a corpus, fixed by the keys of its images: adding images moves none of those that are in it.

The hash has a salt of its own, so that parts have nothing to do with the order in which shards are filled. Rejects and
duplicates go by the same hash, so that in each part input = written + rejected + duplicates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.disk_table import DiskTable, DiskTableWriter, ExternalSorter
from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.corpus.recipe import SplitRecipe
from pipeline.records.corpus import Corpus, key_of

_SALT = b"vitpipe.split"
_MAX_NAMED = 20  # uncovered classes that are named
_STRATUM_SCHEMA = pa.schema([("stratum", pa.int32()), ("hash", pa.uint64())])
Assign = Callable[[pa.Table], NDArray[np.int64]]  # rows -> the number of the part of each


def split(corpus: Corpus, recipe: SplitRecipe, progress: Progress) -> dict[str, Corpus]:
    """The parts of *corpus* by name. Entries stay in the order of the listing.

    A class that has images but none in some part is a message to *progress*, and recorded in ``made_of``. Raises
    InputError when a part would be empty.
    """
    names = sorted(recipe.parts)  # in this order, since equal recipes have equal fingerprints whatever theirs
    shares = [recipe.parts[name] for name in names]
    by_hash: Assign = _Shares(shares).parts
    assign = _Strata(corpus, shares).parts if recipe.stratified else by_hash
    entries = _deal(corpus.entries, names, assign)
    for name in names:
        if not entries[name].num_rows:
            raise InputError(
                f"part {name!r} would be empty: it takes {recipe.parts[name]:g} of {corpus.entries.num_rows} images",
                "raise its share, or leave it out",
            )
    rejects, duplicates = (_deal(rows, names, by_hash) for rows in (corpus.rejects, corpus.duplicates))
    uncovered = _uncovered(corpus, entries)
    parts = {}
    for name in names:
        provenance = corpus.made_of | {"split": split_provenance(recipe, name)}
        if uncovered[name]:
            shown = uncovered[name][:_MAX_NAMED]
            provenance["split"]["uncovered"] = {"num_classes": len(uncovered[name]), "first": shown}
            progress.message(f"part {name} has no image of {len(uncovered[name])} classes: {', '.join(shown)}")
        parts[name] = replace(
            corpus, entries=entries[name], rejects=rejects[name], duplicates=duplicates[name], made_of=provenance
        )
    return parts


def split_provenance(recipe: SplitRecipe, part: str) -> dict[str, object]:
    """What ``made_of`` says of the split that gave *part*: known before the corpus is read."""
    return {
        "part": part,
        "share": recipe.parts[part],
        "shares": dict(sorted(recipe.parts.items())),
        "stratified": recipe.stratified,
    }


class _Shares:
    """Parts by the hash of the key alone."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._ends = _ends(shares)

    def parts(self, table: pa.Table) -> NDArray[np.int64]:
        """The number of the part of each row of *table*, which has origins."""
        return np.searchsorted(self._ends, _hashes(table["origin"]), side="right")


class _Strata:
    """Exact shares of each class: its images in the order of their hashes, cut at its ``quotas``.

    The first label counts; images without one make up a class. In memory is one hash for each class and cut.
    """

    def __init__(self, corpus: Corpus, shares: Sequence[float]) -> None:
        counts = np.zeros(len(corpus.classes) + 1, dtype=np.int64)
        sorter = ExternalSorter(_STRATUM_SCHEMA, corpus.entries.num_rows, tie="hash")
        for table in corpus.entries.chunks():
            strata, hashes = _strata_of(table, len(corpus.classes)), _hashes(table["origin"])
            counts += np.bincount(strata, minlength=len(counts))
            sorter.add(pa.table({"stratum": strata, "hash": hashes}, schema=_STRATUM_SCHEMA), hashes)
        cuts = np.array([list(accumulate(quotas(int(count), shares)))[:-1] for count in counts], dtype=np.int64)
        self._firsts = np.full(cuts.shape, np.iinfo(np.uint64).max, dtype=np.uint64)  # first hash after each cut
        self._find_firsts(sorter, cuts)

    def parts(self, table: pa.Table) -> NDArray[np.int64]:
        """The number of the part of each row of *table*, which has origins and labels."""
        firsts = self._firsts[_strata_of(table, len(self._firsts) - 1)]
        parts: NDArray[np.int64] = (_hashes(table["origin"])[:, None] >= firsts).sum(axis=1)
        return parts

    def _find_firsts(self, sorter: ExternalSorter, cuts: NDArray[np.int64]) -> None:
        seen = np.zeros(len(cuts), dtype=np.int64)
        for table in sorter.in_order():
            strata = table["stratum"].to_numpy()
            hashes = table["hash"].to_numpy()
            order = np.argsort(strata, kind="stable")
            numbers, starts, sizes = np.unique(strata[order], return_index=True, return_counts=True)
            ranks = np.empty(len(strata), dtype=np.int64)
            ranks[order] = np.arange(len(strata)) - np.repeat(starts - seen[numbers], sizes)
            seen[numbers] += sizes
            rows, numbers_of_cuts = np.nonzero(cuts[strata] == ranks[:, None])
            self._firsts[strata[rows], numbers_of_cuts] = hashes[rows]


def quotas(count: int, shares: Sequence[float]) -> list[int]:
    """How many of *count* images go to each part: by largest remainder, and at least one each when there are enough."""
    exact = [count * share for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda part: (counts[part] - exact[part], -shares[part], part))
    for part in by_remainder[: count - sum(counts)]:
        counts[part] += 1
    while count >= len(shares) and 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def _hashes(origins: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The hash of the key of each origin, uniform over 0 to 2^64."""
    hashes = (
        hashlib.blake2b(key_of(origin).encode(), digest_size=8, key=_SALT).digest() for origin in origins.to_pylist()
    )
    return np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)


def _ends(shares: Sequence[float]) -> NDArray[np.uint64]:
    """The hash at which each part but the last ends."""
    return np.array([min(2**64 - 1, int(total * 2**64)) for total in accumulate(shares)][:-1], dtype=np.uint64)


def _strata_of(table: pa.Table, num_classes: int) -> NDArray[np.int32]:
    """The first label of each row; *num_classes* for a row without any."""
    return np.array([labels[0] if labels else num_classes for labels in table["labels"].to_pylist()], dtype=np.int32)


def _deal(rows: DiskTable, names: Sequence[str], assign: Assign) -> dict[str, DiskTable]:
    writers = {name: DiskTableWriter(rows.schema) for name in names}
    for table in rows.chunks():
        parts = assign(table)
        for number, name in enumerate(names):
            writers[name].add(table.filter(pa.array(parts == number)))
    return {name: writer.close() for name, writer in writers.items()}


def _uncovered(corpus: Corpus, entries: dict[str, DiskTable]) -> dict[str, list[str]]:
    """Of each part, the classes that have no image there although they have some in the corpus."""
    counts = {name: _label_counts(rows, len(corpus.classes)) for name, rows in entries.items()}
    total = sum(counts.values())
    return {
        name: [corpus.classes[label].name for label in np.flatnonzero((total > 0) & (part_counts == 0))]
        for name, part_counts in counts.items()
    }


def _label_counts(rows: DiskTable, num_classes: int) -> NDArray[np.int64]:
    counts = np.zeros(num_classes, dtype=np.int64)
    for table in rows.chunks():
        labels = pc.list_flatten(table["labels"].combine_chunks())
        counts += np.bincount(labels.to_numpy(), minlength=num_classes)
    return counts
