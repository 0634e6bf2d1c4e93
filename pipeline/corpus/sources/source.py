"""What a source is: it finds images and its reader gives their bytes. README.md of this folder says how to add one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from pipeline.corpus.sources.location import SourceLocation
from pipeline.corpus.sources.walk import printable
from pipeline.records.corpus import SOURCE_SCHEMA, ClassEntry, CorpusReader, Reject

MAX_CHUNK_ROWS = 16_384  # rows of one chunk: what a source has in memory at most
_LONGEST_DETAIL = 200  # characters of a reject's detail that are stored
LabelKind = Literal["names", "numbers", "either"]


class ListingChunk(NamedTuple):
    """A bounded part of what a source lists: rows of FOUND_SCHEMA, and what it had to leave out."""

    entries: pa.Table
    rejects: list[Reject]


class Source(Protocol):
    """Images at one location, opened. The properties are final once ``chunks`` has come to its end."""

    @property
    def kind(self) -> str:
        """Its name in recipes."""

    @property
    def reader(self) -> CorpusReader:
        """Reads the entries that it lists, in their order, in bounded memory.

        It is pickled and sent to workers, so it has no open file, client or thread in it. ``FileReader`` serves whole
        objects and ranges of them; ``WindowedReader`` what has to be read from front to back.
        """

    @property
    def random_access(self) -> bool:
        """Whether entries can be read in any order at no more than the cost of reading them in listing order."""

    @property
    def may_repeat(self) -> bool:
        """Whether one origin may be listed twice (all but the first are then rejected); else origins are unique."""

    @property
    def label_kind(self) -> LabelKind:
        """What the texts of labels are; ``either``: numbers if all of them are, else names."""

    @property
    def declared_classes(self) -> Sequence[ClassEntry]:
        """The classes in the order of their numbers, where the source itself names them."""

    def chunks(self) -> Iterator[ListingChunk]:
        """Everything that is there, in a fixed order. May be called once.

        Labels stay the texts of the source. Null: nothing is known of this image; an empty list: several labels
        could apply, none does. Memory does not grow with the number of images; ``ListingBuilder`` makes the chunks.
        """


@dataclass(frozen=True)
class SourceKind:
    """A row of the registry: its name in recipes, whether it can read a location, and how it opens it.

    ``matches`` looks at names, and at little else. ``containers`` are the suffixes of its files, if one file has many
    images: where such files lie beside loose images, nobody guesses which are meant.
    """

    name: str
    matches: Callable[[SourceLocation], bool]
    open: Callable[[SourceLocation], Source]
    containers: tuple[str, ...] = ()


class ListingBuilder:
    """Collects rows and rejects for a chunk."""

    def __init__(self) -> None:
        self._columns: tuple[list[object], ...] = tuple([] for _ in SOURCE_SCHEMA)
        self._rejects: list[Reject] = []

    def add(
        self,
        origin: str,
        file: str,
        labels: Sequence[str | None] | None,
        num_bytes: int,
        etag: str = "",
        offset: int = -1,
    ) -> None:
        """Add one image: the object *file*, or *num_bytes* of it from *offset*."""
        for column, value in zip(self._columns, (origin, file, -1, offset, num_bytes, etag, labels), strict=True):
            column.append(value)

    def reject(self, origin: str, reason: str, detail: str = "") -> None:
        """Add one image that is left out."""
        self._rejects.append(Reject(printable(origin), reason, printable(detail)[:_LONGEST_DETAIL]))

    @property
    def is_full(self) -> bool:
        """Whether it is time to hand a chunk on."""
        return len(self._columns[0]) + len(self._rejects) >= MAX_CHUNK_ROWS

    def take(self) -> ListingChunk:
        """The chunk of what was collected; the builder is empty afterwards."""
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, SOURCE_SCHEMA, strict=True)]
        chunk = ListingChunk(pa.table(arrays, schema=SOURCE_SCHEMA), self._rejects)
        self.__init__()  # type: ignore[misc]
        return chunk


class DamagedLabelError(ValueError):
    """The value of a label field cannot be a label."""


def parse_labels(value: Any) -> list[str | None] | None:
    """The texts of *value*: a name, a number, or a list of them. None is no label; so is one inside a list.

    Raises DamagedLabelError for whatever else it is.
    """
    if value is None:
        return None
    if isinstance(value, list):
        return [_text(label) for label in value]
    text = _text(value)
    return None if text is None else [text]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int | float):
        return _number_text(value)
    raise DamagedLabelError(f"a label cannot be of type {type(value).__name__}")


def _number_text(value: float) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"{'-' if value < 0 else ''}1e18"  # far out of any range, whatever it is
    return repr(value)


def parse_json(text: str | bytes) -> Any:
    """The JSON in *text*. Raises DamagedLabelError when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedLabelError("not JSON") from None


def parse_label_cell(cell: str) -> list[str | None] | None:
    """The texts of a cell of a table: a JSON list, or texts between ``|``. An empty cell is no label."""
    cell = cell.strip()
    if cell.startswith("["):
        return parse_labels(parse_json(cell))
    return [part.strip() or None for part in cell.split("|")] if cell else None
