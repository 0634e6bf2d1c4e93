"""A corpus as found: a listing of entries, the class names, and something that reads the entries' bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from pipeline.base.digests import sha256_hex

# One row per image. `origin` is unique in the corpus and relative to it; `file` is the key in the source's store;
# `row` is the row inside that file, or -1 when the file is the image.
LISTING_SCHEMA = pa.schema(
    [
        ("origin", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("num_bytes", pa.int64()),
        ("labels", pa.list_(pa.int32())),
    ]
)

KEY_DIGITS = 20  # hex digits of a sample's key: 80 bits, so 10^9 keys collide with probability below 10^-6


def key_of(origin: str) -> str:
    """The key of the image at *origin*: safe in any tar reader, whatever the file was called."""
    return sha256_hex(origin.encode())[:KEY_DIGITS]


@dataclass(frozen=True)
class Reject:
    """An image that was left out: where it came from, the typed reason, and what was seen."""

    origin: str
    reason: str
    detail: str = ""


REJECTS_SCHEMA = pa.schema([("origin", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class CorpusReader(Protocol):
    """Reads the bytes of listed entries. Can be pickled; opens what it needs where it is used."""

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """The bytes of each row of *entries* (LISTING_SCHEMA), in their order; None where the image is null.

        A missing or unreadable file is an OSError raised for that row's ``next`` only.
        """


@dataclass(frozen=True)
class Corpus:
    """What a source found. ``rejects`` are entries that were refused while listing."""

    listing: pa.Table
    class_names: tuple[str, ...]
    reader: CorpusReader
    rejects: tuple[Reject, ...] = field(default=())
