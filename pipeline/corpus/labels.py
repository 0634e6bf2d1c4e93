"""Texts of labels -> numbers of one class table. Works on whole columns: there may be 10^9 labels, but few texts.

seen = LabelsSeen(); seen.add(chunk["labels"])      the texts of a source's labels, all in all
table = build_class_table(...)                      the classes, and for each source the number of each text
encode_labels(chunk["labels"], table.mappings[i])   the labels of a chunk as numbers, and what is wrong with which
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.corpus.class_table import MAX_CLASSES, check_classes
from pipeline.corpus.sources.source import LabelKind
from pipeline.records.corpus import ClassEntry

MISSING, OUT_OF_RANGE, UNKNOWN = -1, -2, -3  # instead of a number
REASONS = {MISSING: "label-missing", OUT_OF_RANGE: "label-out-of-range", UNKNOWN: "label-unknown"}
_MAX_CHARS = 100_000_000  # of all texts together: names of classes are short
_INTEGER = re.compile(r"[0-9]{1,18}")


class LabelsSeen:
    """The distinct texts of a source's labels, and how many rows have no label or an empty list of them."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self._num_chars = 0
        self.num_empty = 0
        self.num_null = 0

    def add(self, labels: pa.ChunkedArray) -> None:
        """Count a column of lists in. Raises InputError when there are more texts than a class table may have."""
        self.num_null += labels.null_count
        self.num_empty += pc.sum(pc.equal(pc.list_value_length(labels), 0)).as_py() or 0
        new = set(pc.unique(pc.list_flatten(labels).drop_null()).to_pylist()) - self.texts
        self.texts |= new
        self._num_chars += sum(map(len, new))
        if len(self.texts) > MAX_CLASSES or self._num_chars > _MAX_CHARS:
            raise InputError(
                f"more than {MAX_CLASSES} different labels, or as many as {_MAX_CHARS} letters",
                "is that column one of labels? name the classes in a file",
            )


@dataclass(frozen=True)
class SourceLabels:
    """The labels of source *name*: their texts, what those are, and the classes that it declares."""

    name: str
    seen: LabelsSeen
    label_kind: LabelKind
    declared_classes: Sequence[ClassEntry]

    @property
    def is_labelled(self) -> bool:
        """Whether it has labels at all: one text, or an empty list where there are classes that could stand in it."""
        return bool(self.seen.texts or (self.seen.num_empty and self.declared_classes))

    @property
    def are_numbers(self) -> bool:
        """Whether its texts are numbers of classes."""
        if self.label_kind == "either":
            return all(_number_in(text) is not None for text in self.seen.texts)
        return self.label_kind == "numbers"


@dataclass(frozen=True)
class LabelMapping:
    """The number of each text of one source, negative where it has none. ``is_labelled``: see SourceLabels."""

    is_labelled: bool
    texts: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    numbers: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass(frozen=True)
class ClassTable:
    """The classes of a corpus, and for each of its sources the numbers of its texts."""

    classes: tuple[ClassEntry, ...]
    mappings: tuple[LabelMapping, ...]


def build_class_table(sources: Sequence[SourceLabels], table: Sequence[ClassEntry] = ()) -> ClassTable:
    """One class table for all *sources*: *table*, or if it is empty those that they declare or imply, united by name.

    Raises InputError when labelled sources are joined with unlabelled ones, or numbers without names with names.
    """
    labelled = [source for source in sources if source.is_labelled]
    if not labelled:
        if table:
            raise InputError("a class table was given, but no image has a label", "leave the class table out")
        return ClassTable((), tuple(LabelMapping(False) for _ in sources))
    without = [source.name for source in sources if not source.is_labelled and _has_rows(source)]
    if without:
        raise InputError(f"source {without[0]} has no labels, source {labelled[0].name} has", "leave one of them out")
    implied = [_implied_classes(source) for source in sources]
    if table:
        classes = tuple(table)
    else:
        kinds = {bool(source.are_numbers and not source.declared_classes): source.name for source in labelled}
        if len(kinds) > 1:
            raise InputError(
                f"the labels of source {kinds[True]} are numbers, those of source {kinds[False]} names",
                "give a class table",
            )
        classes = _unite(implied)
        if not any(source.declared_classes or source.are_numbers for source in labelled):
            classes = tuple(sorted(classes, key=lambda entry: entry.name))
    if classes:
        check_classes(classes, "the classes of the corpus")
    number = {text: index for index, entry in enumerate(classes) for text in (entry.synset, entry.name) if text}
    mappings = (_mapping(source, number, len(classes), has_table=bool(table)) for source in sources)
    return ClassTable(classes, tuple(mappings))


def _has_rows(source: SourceLabels) -> bool:
    """Whether a source without labels has images at all."""
    return bool(source.seen.num_null or source.seen.num_empty)


def _implied_classes(source: SourceLabels) -> Sequence[ClassEntry]:
    """The classes of one source: those it declares, else its names, else the numbers up to the largest."""
    if source.declared_classes or not source.is_labelled:
        return source.declared_classes
    if source.are_numbers:
        numbers = [number for text in source.seen.texts if (number := _class_number(text)) is not None]
        return [ClassEntry(name=str(number)) for number in range(max(numbers, default=-1) + 1)]
    return [ClassEntry(name=text) for text in sorted(source.seen.texts) if not _is_broken(source, text)]


def _is_broken(source: SourceLabels, text: str) -> bool:
    """Whether *text*, among names, is a number that is none of a class: NaN, -1, 1e100."""
    return source.label_kind == "either" and _number_in(text) is not None and _class_number(text) is None


def _number_in(text: str) -> float | None:
    """The number that *text* is, NaN and infinity among them; None when it is a name."""
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def _class_number(text: str) -> int | None:
    """The number of a class in *text*, or None when it cannot be one."""
    value = _number_in(text)
    if value is None or not math.isfinite(value) or value != int(value) or not 0 <= value < MAX_CLASSES:
        return None
    return int(value)


def _unite(tables: Sequence[Sequence[ClassEntry]]) -> tuple[ClassEntry, ...]:
    united: dict[str, ClassEntry] = {}
    for table in tables:
        if len({entry.name for entry in table}) != len(table):
            check_classes(table, "the classes of a source")  # its error names the class that is there twice
        for entry in table:
            united.setdefault(entry.name, entry)
    return tuple(united.values())


def _mapping(source: SourceLabels, number: dict[str, int], num_classes: int, *, has_table: bool) -> LabelMapping:
    texts = sorted(source.seen.texts)
    numbers = np.array([_number_of(source, text, number, num_classes, has_table) for text in texts], np.int32)
    return LabelMapping(source.is_labelled, pa.array(texts, pa.string()), numbers)


def _number_of(source: SourceLabels, text: str, number: dict[str, int], num_classes: int, has_table: bool) -> int:
    """The class of *text*, or the code of what is wrong with it."""
    if not source.are_numbers:
        return number.get(text, OUT_OF_RANGE if _is_broken(source, text) else UNKNOWN)
    if has_table and not source.declared_classes and text in number:  # a table may have numbers for names
        return number[text]
    index = _class_number(text)
    if index is None or index >= (len(source.declared_classes) or num_classes):
        return UNKNOWN if _number_in(text) is None else OUT_OF_RANGE
    if not source.declared_classes:
        return index
    entry = source.declared_classes[index]
    return number.get(entry.name, number.get(entry.synset, UNKNOWN))


def encode_labels(labels: pa.ChunkedArray, mapping: LabelMapping) -> tuple[pa.Array, NDArray[np.int32]]:
    """*labels* as list<int32>, each number once in a row, and for each row 0 or the code of what is wrong with it.

    In a corpus without labels all rows have none, and nothing is wrong.
    """
    column = labels.combine_chunks() if isinstance(labels, pa.ChunkedArray) else labels
    num_rows = len(column)
    if not mapping.is_labelled:
        return _lists(np.zeros(num_rows, np.int64), np.empty(0, np.int32)), np.zeros(num_rows, np.int32)
    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.fill_null(pc.index_in(pc.list_flatten(column), mapping.texts), -1).to_numpy(zero_copy_only=False)
    numbers = np.append(mapping.numbers, np.int32(MISSING))[flat]  # -1 is the last one: a null in a list
    rows = np.repeat(np.arange(num_rows), sizes)
    wrong = np.zeros(num_rows, np.int32)
    np.minimum.at(wrong, rows[numbers < 0], numbers[numbers < 0])
    wrong[pc.is_null(column).to_numpy(zero_copy_only=False)] = MISSING
    if (sizes > 1).any():
        first = _first_in_row(rows, numbers)
        rows, numbers = rows[first], numbers[first]
        sizes = np.bincount(rows, minlength=num_rows)
    return _lists(sizes, numbers.astype(np.int32)), wrong


def _first_in_row(rows: NDArray[np.int64], numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of *numbers* are the first of their value in their row."""
    order = np.lexsort((np.arange(len(rows)), numbers, rows))
    first = np.ones(len(rows), bool)
    is_again = (rows[order][1:] == rows[order][:-1]) & (numbers[order][1:] == numbers[order][:-1])
    first[order[1:][is_again]] = False
    return first


def _lists(sizes: NDArray[np.int64], numbers: NDArray[np.int32]) -> pa.Array:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(numbers, pa.int32()))
