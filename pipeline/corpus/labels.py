"""Labels as found -> numbers of one class table. Works on whole columns: there may be 10^9 labels, but few texts.

seen = LabelsSeen(); seen.add(chunk["labels"])     what a source's labels are, all in all
table = resolve(...)                               the classes, and for each source the number of each text
numbers_of(chunk["labels"], table.meanings[i])     the labels of a chunk as numbers, and what is wrong with which
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
_MOST_CHARS = 100_000_000  # of all texts together: names of classes are short
_WHOLE = re.compile(r"[0-9]{1,18}")


class LabelsSeen:
    """The distinct texts of a source's labels, and how many rows have none or several."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self._num_chars = 0
        self.num_empty = 0
        self.num_null = 0

    def add(self, labels: pa.ChunkedArray) -> None:
        """Take in a column of lists. Raises InputError when there are more texts than a class table may have."""
        self.num_null += labels.null_count
        self.num_empty += pc.sum(pc.equal(pc.list_value_length(labels), 0)).as_py() or 0
        new = set(pc.unique(pc.list_flatten(labels).drop_null()).to_pylist()) - self.texts
        self.texts |= new
        self._num_chars += sum(map(len, new))
        if len(self.texts) > MAX_CLASSES or self._num_chars > _MOST_CHARS:
            raise InputError(
                f"more than {MAX_CLASSES} different labels, or as many as {_MOST_CHARS} letters",
                "is that column one of labels? name the classes in a file",
            )


@dataclass(frozen=True)
class SourceLabels:
    """What a source says of its labels: their texts, what those are, and the classes that it declares."""

    name: str
    seen: LabelsSeen
    labels_are: LabelKind
    declared: Sequence[ClassEntry]

    @property
    def is_labelled(self) -> bool:
        """Whether it has labels at all: one text, or an empty list where there are classes that could stand in it."""
        return bool(self.seen.texts or (self.seen.num_empty and self.declared))

    @property
    def are_numbers(self) -> bool:
        """Whether its texts are numbers of classes."""
        if self.labels_are == "either":
            return all(number_in(text) is not None for text in self.seen.texts)
        return self.labels_are == "numbers"


@dataclass(frozen=True)
class LabelMapping:
    """The number of each text that one source has, negative where it has none. ``is_labelled``: see Said."""

    is_labelled: bool
    texts: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    numbers: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass(frozen=True)
class ClassTable:
    """The classes of a corpus, and what the texts of each of its sources mean."""

    classes: tuple[ClassEntry, ...]
    meanings: tuple[LabelMapping, ...]


def resolve(sources: Sequence[SourceLabels], given: Sequence[ClassEntry] = ()) -> ClassTable:
    """One class table for all *sources*: the *given* one, else those that they declare or imply, united by name.

    Raises InputError when labelled sources are joined with unlabelled ones, or numbers without names with names.
    """
    labelled = [said for said in sources if said.is_labelled]
    if not labelled:
        if given:
            raise InputError("a class table was given, but no image has a label", "leave the class table out")
        return ClassTable((), tuple(LabelMapping(False) for _ in sources))
    without = [said.name for said in sources if not said.is_labelled and (said.seen.num_null or said.seen.num_empty)]
    if without:
        raise InputError(f"source {without[0]} has no labels, source {labelled[0].name} has", "leave one of them out")
    implied = {at: _implied(said) for at, said in enumerate(sources)}
    if given:
        classes = tuple(given)
    else:
        kinds = {bool(said.are_numbers and not said.declared): said.name for said in labelled}
        if len(kinds) > 1:
            raise InputError(
                f"the labels of source {kinds[True]} are numbers, those of source {kinds[False]} names",
                "give a class table",
            )
        classes = _united([implied[at] for at in implied])
        if not any(said.declared or said.are_numbers for said in labelled):
            classes = tuple(sorted(classes, key=lambda entry: entry.name))
    if classes:
        check_classes(classes, "the classes of the corpus")
    number = {text: at for at, entry in enumerate(classes) for text in (entry.synset, entry.name) if text}
    return ClassTable(classes, tuple(_meaning(said, number, len(classes), bool(given)) for said in sources))


def number_in(text: str) -> float | None:
    """The number that *text* is, NaN and infinity among them; None when it is a name."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    """The number of a class in *text*, or None when it cannot be one."""
    value = number_in(text)
    if value is None or not math.isfinite(value) or value != int(value) or not 0 <= value < MAX_CLASSES:
        return None
    return int(value)


def _implied(said: SourceLabels) -> Sequence[ClassEntry]:
    """The classes of one source: those it declares, else its names, else the numbers up to the largest."""
    if said.declared or not said.is_labelled:
        return said.declared
    if said.are_numbers:
        whole = [number for text in said.seen.texts if (number := _whole(text)) is not None]
        return [ClassEntry(name=str(number)) for number in range(max(whole, default=-1) + 1)]
    return [ClassEntry(name=text) for text in sorted(said.seen.texts) if not _is_broken(said, text)]


def _is_broken(said: SourceLabels, text: str) -> bool:
    """Whether *text*, among names, is a number that is none of a class: NaN, -1, 1e100."""
    return said.labels_are == "either" and number_in(text) is not None and _whole(text) is None


def _united(tables: Sequence[Sequence[ClassEntry]]) -> tuple[ClassEntry, ...]:
    united: dict[str, ClassEntry] = {}
    for table in tables:
        if len({entry.name for entry in table}) != len(table):
            check_classes(table, "the classes of a source")  # names the one that stands twice
        for entry in table:
            united.setdefault(entry.name, entry)
    return tuple(united.values())


def _meaning(said: SourceLabels, number: dict[str, int], num_classes: int, is_given: bool) -> LabelMapping:
    texts = sorted(said.seen.texts)
    numbers = np.array([_number(said, text, number, num_classes, is_given) for text in texts], np.int32)
    return LabelMapping(said.is_labelled, pa.array(texts, pa.string()), numbers)


def _number(said: SourceLabels, text: str, number: dict[str, int], num_classes: int, is_given: bool) -> int:
    """The class of *text*, or the code of what is wrong with it."""
    if not said.are_numbers:
        return number.get(text, OUT_OF_RANGE if _is_broken(said, text) else UNKNOWN)
    if is_given and not said.declared and text in number:  # a table may have numbers for names
        return number[text]
    whole = _whole(text)
    if whole is None or whole >= (len(said.declared) or num_classes):
        return UNKNOWN if number_in(text) is None else OUT_OF_RANGE
    if not said.declared:
        return whole
    entry = said.declared[whole]
    return number.get(entry.name, number.get(entry.synset, UNKNOWN))


def encode_labels(labels: pa.ChunkedArray, meaning: LabelMapping) -> tuple[pa.Array, NDArray[np.int32]]:
    """*labels* as list<int32>, each number once in a row, and for each row 0 or the code of what is wrong with it.

    In a corpus without labels all rows have none, and nothing is wrong.
    """
    column = labels.combine_chunks() if isinstance(labels, pa.ChunkedArray) else labels
    num_rows = len(column)
    if not meaning.is_labelled:
        return _lists(np.zeros(num_rows, np.int64), np.empty(0, np.int32)), np.zeros(num_rows, np.int32)
    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.fill_null(pc.index_in(pc.list_flatten(column), meaning.texts), -1).to_numpy(zero_copy_only=False)
    numbers = np.append(meaning.numbers, np.int32(MISSING))[flat]  # -1 is the last one: a null in a list
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
    """Which of *numbers* stand for the first time in their row."""
    order = np.lexsort((np.arange(len(rows)), numbers, rows))
    first = np.ones(len(rows), bool)
    same = (rows[order][1:] == rows[order][:-1]) & (numbers[order][1:] == numbers[order][:-1])
    first[order[1:][same]] = False
    return first


def _lists(sizes: NDArray[np.int64], numbers: NDArray[np.int32]) -> pa.Array:
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(numbers, pa.int32()))
