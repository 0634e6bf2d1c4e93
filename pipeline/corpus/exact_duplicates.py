"""Equal images by their digests, on disk: a bucket of them is in memory at a time, and full digests are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.disk_table import DiskTableWriter, ExternalSorter
from pipeline.corpus.recipe import DuplicatesRecipe

# An image to be compared. `position` is its row in the listing, -1 for one of an evaluation set, whose origin is
# dataset/key. `pixels` is null where they are not compared.
IMAGE_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("origin", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("sha256", pa.binary(32)),
        ("pixels", pa.binary(32)),
    ]
)
KEPT = "kept"
# What became of an image: one of the reasons of DUPLICATES_SCHEMA, or KEPT for one that stays and has copies.
OUTCOME_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("origin", pa.string()),
        ("reason", pa.string()),
        ("of", pa.string()),
        ("labels_differ", pa.bool_()),
    ]
)
_COLUMN = {"file": "sha256", "pixels": "pixels"}


def find_exact_duplicates(
    images: Iterable[pa.Table], num_positions: int, recipe: DuplicatesRecipe
) -> Iterator[pa.Table]:
    """Rows of OUTCOME_SCHEMA for the images that have copies, in the order of their positions.

    *images* are of IMAGE_SCHEMA, those of evaluation sets among them; positions are below *num_positions*. All copies
    of an evaluation image go; of other equal images the one with the smallest origin stays.
    """
    outcomes = ExternalSorter(OUTCOME_SCHEMA, num_positions, tie="origin")
    *first, (last_by, last_within) = _passes(recipe)
    for by, _ in first:
        rest = DiskTableWriter(IMAGE_SCHEMA)
        for groups in _grouped(images, by, num_positions):
            hits = groups.hits()
            outcomes.add(hits, _position_keys(hits["position"], num_positions))
            rest.add(groups.rest(hits))
        images = rest.close().chunks()
    for groups in _grouped(images, last_by, num_positions):
        for table in (groups.hits(), *(groups.copies() if last_within else ())):
            outcomes.add(table, _position_keys(table["position"], num_positions))
    yield from outcomes.in_order()


def _passes(recipe: DuplicatesRecipe) -> list[tuple[str, bool]]:
    """(what is compared, also within the corpus) of each pass: evaluation sets come first."""
    if not recipe.against:
        return [(recipe.within, True)]
    if recipe.within in ("none", recipe.against_by):
        return [(recipe.against_by, recipe.within != "none")]
    return [(recipe.against_by, False), (recipe.within, True)]


def _grouped(images: Iterable[pa.Table], by: str, num_positions: int) -> Iterator[_Groups]:
    sorter = ExternalSorter(IMAGE_SCHEMA, num_positions, tie="origin")
    for table in images:
        sorter.add(table, _digest_keys(table[_COLUMN[by]]))
    for bucket in sorter.in_order():
        yield _Groups(bucket, _COLUMN[by])


class _Groups:
    """The images of one bucket, equal ones side by side: those of evaluation sets first, then by origin."""

    def __init__(self, bucket: pa.Table, column: str) -> None:
        side = pc.cast(pc.greater_equal(bucket["position"], 0), pa.int8())
        order = [(column, "ascending"), ("side", "ascending"), ("origin", "ascending")]
        self._images = bucket.append_column("side", side).sort_by(order).combine_chunks()
        digests = self._images[column].combine_chunks()
        starts = np.ones(len(digests), dtype=bool)
        starts[1:] = pc.not_equal(digests[1:], digests[:-1]).to_numpy(zero_copy_only=False)
        self._firsts = np.flatnonzero(starts)  # row of the first image of each group
        self._group = np.cumsum(starts) - 1  # group of each row
        self._is_input = self._images["side"].to_numpy() == 1
        self._hit_rows = np.flatnonzero(self._is_input & ~self._is_input[self._firsts[self._group]])

    def hits(self) -> pa.Table:
        """Outcomes of the images that an evaluation set has too. An equal file is named before equal pixels."""
        rows = self._hit_rows
        files = self._images["sha256"].take(pa.array(rows)).to_pylist()
        of, reasons, members = [], [], {}
        for group, file in zip(self._group[rows].tolist(), files, strict=True):
            if group not in members:
                members = {group: self._evaluation_of(group)}  # rows of a group follow each other
            by_file, smallest = members[group]
            of.append(by_file.get(file, smallest))
            reasons.append("evaluation-file" if file in by_file else "evaluation-pixels")
        return self._outcomes(rows, reasons, of, [False] * len(rows))

    def copies(self) -> tuple[pa.Table, pa.Table]:
        """Outcomes of the copies within the corpus, and of the images that stay for them."""
        first = self._firsts[self._group]
        rows = np.flatnonzero(self._is_input[first] & (first != np.arange(len(first))))
        stays = np.unique(first[rows])
        copies, originals = (self._images.take(pa.array(chosen)) for chosen in (rows, first[rows]))
        reasons = pc.if_else(pc.equal(copies["sha256"], originals["sha256"]), "same-file", "same-pixels")
        labels = zip(copies["labels"].to_pylist(), originals["labels"].to_pylist(), strict=True)
        differ = [set(copy or ()) != set(original or ()) for copy, original in labels]
        return (
            self._outcomes(rows, reasons, originals["origin"], differ),
            self._outcomes(stays, [KEPT] * len(stays), [""] * len(stays), [False] * len(stays)),
        )

    def rest(self, hits: pa.Table) -> pa.Table:
        """What goes on to the next pass: the images of the corpus that are no hits; and the *hits*, as images of the
        evaluation set, so that what equals one of them there goes as well.
        """
        chosen = self._images.take(pa.array(self._hit_rows))
        hit_images = {
            "position": pa.array([-1] * chosen.num_rows, pa.int64()),
            "origin": hits["of"],
            "labels": chosen["labels"],
            "sha256": chosen["sha256"],
            "pixels": chosen["pixels"],
        }
        goes_on = self._is_input.copy()
        goes_on[self._hit_rows] = False
        rest = self._images.select(IMAGE_SCHEMA.names).filter(pa.array(goes_on))
        return pa.concat_tables([rest, pa.table(hit_images, schema=IMAGE_SCHEMA)])

    def _evaluation_of(self, group: int) -> tuple[dict[bytes, str], str]:
        """Of the evaluation images of *group*: the smallest origin of each file, and of all of them."""
        start = int(self._firsts[group])
        stop = int(self._firsts[group + 1]) if group + 1 < len(self._firsts) else len(self._group)
        rows = np.flatnonzero(~self._is_input[start:stop]) + start
        members = self._images.select(["sha256", "origin"]).take(pa.array(rows)).to_pydict()
        by_file = dict(zip(reversed(members["sha256"]), reversed(members["origin"]), strict=True))
        return by_file, members["origin"][0]

    def _outcomes(self, rows: NDArray[np.int64], reasons: object, of: object, differ: list[bool]) -> pa.Table:
        chosen = self._images.select(["position", "origin"]).take(pa.array(rows))
        columns = {
            "position": chosen["position"],
            "origin": chosen["origin"],
            "reason": _strings(reasons),
            "of": _strings(of),
            "labels_differ": pa.array(differ, pa.bool_()),
        }
        return pa.table(columns, schema=OUTCOME_SCHEMA)


def _strings(values: object) -> pa.Array | pa.ChunkedArray:
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())


def _digest_keys(digests: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The first 64 bits of each digest."""
    array = pa.concat_arrays(digests.chunks) if digests.num_chunks else pa.array([], pa.binary(32))
    quarters = np.frombuffer(array.buffers()[1] or b"", dtype=">u8")  # four of 64 bits make a digest
    return quarters[4 * array.offset : 4 * (array.offset + len(array)) : 4].astype(np.uint64)


def _position_keys(positions: pa.ChunkedArray, num_positions: int) -> NDArray[np.uint64]:
    """Keys that are in the order of the positions and spread like hashes."""
    keys: NDArray[np.uint64] = positions.to_numpy().astype(np.uint64) * np.uint64(2**64 // (num_positions + 1))
    return keys
