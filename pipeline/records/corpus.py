"""A corpus: a listing of entries, the class table, what was left out, and a reader of the entries' bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import DiskTable
from pipeline.records.record import Record

# Where the bytes of an image are: the whole object `file` (row and offset -1), `num_bytes` of it from `offset`, or
# row `row` of a table. `etag` is the object's when it was listed ("": not pinned); `origin` is unique in the corpus
# and relative to it.
_LOCATION_FIELDS = [
    ("origin", pa.string()),
    ("file", pa.string()),
    ("row", pa.int64()),
    ("offset", pa.int64()),
    ("num_bytes", pa.int64()),
    ("etag", pa.string()),
]
# What a source lists, labels as text. Null: nothing is known of its labels. Empty: it may have several, and has none.
SOURCE_SCHEMA = pa.schema([*_LOCATION_FIELDS, ("labels", pa.list_(pa.string()))])
# What is sharded: `source` is the number of the reader, labels are numbers of the class table.
LISTING_SCHEMA = pa.schema([*_LOCATION_FIELDS, ("source", pa.int16()), ("labels", pa.list_(pa.int32()))])
REJECTS_SCHEMA = pa.schema([("origin", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
# `reason` is same-file, same-pixels, evaluation-file or evaluation-pixels; `of` is the origin that was kept, or
# dataset/key for an evaluation set; `labels_differ`: the one that was kept has other labels.
DUPLICATES_SCHEMA = pa.schema(
    [("origin", pa.string()), ("reason", pa.string()), ("of", pa.string()), ("labels_differ", pa.bool_())]
)
KEY_DIGITS = 20  # hex digits of a sample's key: 80 bits, so 10^9 keys collide with probability below 10^-6


def key_of(origin: str) -> str:
    """The key of the image at *origin*: safe in any tar reader, whatever the file was called."""
    return sha256_hex(origin.encode())[:KEY_DIGITS]


@dataclass(frozen=True)
class Reject:
    """An image that was left out: its origin, the typed reason, and details."""

    origin: str
    reason: str
    detail: str = ""


def rejects_table(rejects: list[Reject]) -> pa.Table:
    """*rejects* as rows of REJECTS_SCHEMA."""
    columns = {name: [getattr(reject, name) for reject in rejects] for name in REJECTS_SCHEMA.names}
    return pa.table(columns, schema=REJECTS_SCHEMA)


class ClassEntry(Record):
    """One class: its name, and where a class table gives them its synset and the name of the class above it."""

    name: str
    synset: str = ""
    parent: str = ""


class CorpusReader(Protocol):
    """Reads the bytes of listed entries. Can be pickled; opens what it needs where it is used."""

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """The bytes of each row of *entries* (LISTING_SCHEMA), in their order; None where the image is null.

        A missing, changed or unreadable file is an OSError raised for that row's ``next`` only: the caller may go on
        with the next row. The memory in use is bounded, whatever the number of entries.
        """


@dataclass(frozen=True)
class Corpus:
    """Listed entries with what was left out so far. ``made_of`` is what shaped it, plain JSON, for the card.

    ``random_access``: entries can be read in any order at the cost of reading them.
    """

    entries: DiskTable
    classes: tuple[ClassEntry, ...]
    reader: CorpusReader
    rejects: DiskTable = field(default_factory=lambda: DiskTable.of(REJECTS_SCHEMA.empty_table()))
    duplicates: DiskTable = field(default_factory=lambda: DiskTable.of(DUPLICATES_SCHEMA.empty_table()))
    made_of: dict[str, Any] = field(default_factory=dict)
    random_access: bool = True

    @property
    def num_input(self) -> int:
        """Every image of the sources: those listed, rejected and duplicate."""
        return self.entries.num_rows + self.rejects.num_rows + self.duplicates.num_rows

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return tuple(entry.name for entry in self.classes)
