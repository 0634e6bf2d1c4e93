"""What a source is: something that finds images and can read their bytes. See README.md of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

from pipeline.corpus.sources.location import SourceLocation
from pipeline.records.corpus import FOUND_SCHEMA, ClassEntry, CorpusReader, Reject

CHUNK = 16_384  # rows of one chunk: what a source holds at most
LabelKind = Literal["names", "numbers", "either"]
# What may be an image by its name; what it is, its content decides. No suffix at all is looked into as well.
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff", ""})


class ListingChunk(NamedTuple):
    """A bounded part of what a source found: rows of FOUND_SCHEMA, and what it had to leave out."""

    entries: pa.Table
    rejects: list[Reject]


class Source(Protocol):
    """One place of images. The properties hold once ``chunks`` has come to its end."""

    @property
    def kind(self) -> str:
        """Its name in recipes."""

    @property
    def reader(self) -> CorpusReader:
        """What reads the entries that it found."""

    @property
    def random_access(self) -> bool:
        """Whether entries can be read in any order at the cost of reading them."""

    @property
    def may_repeat(self) -> bool:
        """Whether one origin may be found twice; else origins are unique by themselves."""

    @property
    def labels_are(self) -> LabelKind:
        """What the texts of labels are; ``either``: numbers if all of them are, else names."""

    @property
    def declared(self) -> Sequence[ClassEntry]:
        """The classes in the order of their numbers, where the source itself names them."""

    def chunks(self) -> Iterator[ListingChunk]:
        """Everything that is there, in a fixed order. May be called once."""


@dataclass(frozen=True)
class SourceKind:
    """A line of the registry: its name in recipes, whether it knows a place for its own, and how it opens it."""

    name: str
    matches: Callable[[SourceLocation], bool]
    open: Callable[[SourceLocation], Source]


class ListingBuilder:
    """Rows and rejects on their way into a chunk."""

    def __init__(self) -> None:
        self._columns: tuple[list[object], ...] = tuple([] for _ in FOUND_SCHEMA)
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
        """One image: the object *file*, or *num_bytes* of it from *offset*."""
        for column, value in zip(self._columns, (origin, file, -1, offset, num_bytes, etag, labels), strict=True):
            column.append(value)

    def reject(self, origin: str, reason: str, detail: str = "") -> None:
        """One image that is left out."""
        self._rejects.append(Reject(shown(origin), reason, shown(detail)[:200]))

    @property
    def is_full(self) -> bool:
        """Whether it is time to hand on what was collected."""
        return len(self._columns[0]) + len(self._rejects) >= CHUNK

    def take(self) -> ListingChunk:
        """What was collected; afterwards nothing is."""
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, FOUND_SCHEMA, strict=True)]
        found = ListingChunk(pa.table(arrays, schema=FOUND_SCHEMA), self._rejects)
        self.__init__()  # type: ignore[misc]
        return found


def shown(name: str) -> str:
    """*name* as text that can be stored: bytes of a file name that are no UTF-8 are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_text(name: str) -> bool:
    """Whether *name* can be stored as it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class DamagedLabelError(ValueError):
    """What stands where a label must stand cannot be one."""


def texts_of(value: Any) -> list[str | None] | None:
    """The texts of *value*: a name, a number, or a list of them. None says nothing; so does one inside a list.

    Raises DamagedLabelError for whatever else it is.
    """
    if value is None:
        return None
    if isinstance(value, list):
        return [_text(item) for item in value]
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
        return _number(value)
    raise DamagedLabelError(f"a label cannot be of type {type(value).__name__}")


def _number(value: float) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"{'-' if value < 0 else ''}1e18"  # far out of any range, whatever it is
    return repr(value)


def parse_json(text: str | bytes) -> Any:
    """The JSON in *text*. Raises DamagedLabelError when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedLabelError("not JSON") from None


def texts_in_cell(cell: str) -> list[str | None] | None:
    """The texts of a cell of a table: a JSON list, or texts between ``|``; nothing is said by an empty one."""
    cell = cell.strip()
    if cell.startswith("["):
        return texts_of(parse_json(cell))
    return [part.strip() or None for part in cell.split("|")] if cell else None
