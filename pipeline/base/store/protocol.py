"""The protocol of a store, and what its users share: content sums, errors, how a bucket is reached, what can go.

Keys are relative to the store's URI, with ``/`` between parts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from pydantic import Field

from pipeline.base.config import Config
from pipeline.base.errors import InputError, StoreAccessError

SumKind = Literal["sha256", "crc32", "md5", "md5-parts"]


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its key, its size, an etag that changes with its content, and when it was written.

    ``modified`` is in seconds since 1970 by the store's own clock, 0 where it was not read; it does not count in a
    comparison.
    """

    key: str
    num_bytes: int
    etag: str
    modified: float = field(default=0.0, compare=False)


class Store(Protocol):
    """A place for objects. Every put is all or nothing: a reader sees the whole object or none.

    A missing object is ``FileNotFoundError``. A store that cannot be reached or that denies the call is
    :class:`~pipeline.base.errors.StoreAccessError`. Stores can be pickled and opened again elsewhere.
    """

    @property
    def uri(self) -> str:
        """The URI that opens this store, without a trailing slash and without credentials."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with *prefix*, in the order of their keys."""

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object at *key*, or None when there is none."""

    def read(self, key: str, etag: str = "") -> bytes:
        """The whole object. With *etag*, raises ObjectChangedError when it has another one."""

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """*length* bytes from *start*; fewer at the end of the object. *etag* as in ``read``."""

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """The object from byte *start* on, in pieces of about a MiB as they come. Nothing of it is compared.

        When it breaks off, that is a FailedError: go on behind what came, if the object is still the same.
        """

    def read_with_sum(self, key: str, etag: str = "") -> tuple[bytes, ContentSum | None]:
        """The whole object as it came, not compared, and what the store says of its content (None: nothing)."""

    def content_sum(self, key: str, etag: str = "", exact: bool = False) -> ContentSum | None:
        """What the store says of the object's content (None: nothing); *exact*: ask for the size of every part."""

    def put(self, key: str, data: bytes) -> None:
        """Create or replace the object."""

    def put_file(self, key: str, path: Path) -> None:
        """Create or replace the object with the content of the local file *path*."""

    def multipart(self, key: str, part_bytes: int) -> PartsWriter:
        """Begin an object in parts of *part_bytes* (on S3 at least 5 MiB), of which there is at least one."""

    def incoming(self, key: str) -> AbstractContextManager[Path]:
        """A local file to write: the object at *key* once the block ends, nothing at all when it raises.

        On disk it is written in place and renamed; for a bucket it is a temporary file that is uploaded.
        """

    def sweep(self, prefix: str = "", older_than_seconds: float = 0.0, dry_run: bool = False) -> int:
        """Remove what killed writers left unfinished below *prefix*; how many of them there were.

        *dry_run*: how many there are, and nothing is removed.
        """

    def prune(self) -> None:
        """Remove folders that hold nothing, the store's own and the one above it included; buckets have none."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create the object; False, and nothing written, when there is one already. One of many racers wins."""

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """Replace the object if it still has *etag*; else False, and nothing written."""

    def fetch(self, key: str, path: Path) -> None:
        """Write the object to the local file *path*, all or nothing."""

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""

    def local_path(self, key: str) -> Path | None:
        """Where a local process can open the object in place, or None when it has to be fetched."""

    def check_writable(self) -> None:
        """Write and remove a probe object. Raises StoreAccessError when that is not possible."""


class PartsWriter(Protocol):
    """An object that is written in parts, in any order and from several threads; nobody sees it before ``complete``.

    Leaving its ``with`` block without ``complete`` removes what was written.
    """

    def put_part(self, number: int, data: bytes) -> None:
        """Write part *number*, from 0. All but the last have the size of ``multipart``; a repeated one replaces."""

    def complete(self) -> None:
        """Create or replace the object: every part is there."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class ContentSum:
    """A sum of an object's content, in hex. ``part_bytes``, for md5-parts: the parts' sizes.

    A single size is that of all parts but the last; it is a guess when ``exact`` is false. S3 gives a checksum (sha256,
    crc32) for some objects, the MD5 as ETag for most (md5), and the MD5 of the MD5s of the parts for those that were
    written in parts (md5-parts). A folder gives no sum.
    """

    kind: SumKind
    value: str
    part_bytes: tuple[int, ...] = ()
    exact: bool = True


class RunningSum:
    """The sum that *expected* names, of bytes that come piece by piece."""

    def __init__(self, expected: ContentSum) -> None:
        self._expected = expected
        self._crc = 0
        self._digest = hashlib.sha256() if expected.kind == "sha256" else _md5()
        self._parts: list[bytes] = []
        self._left = self._size_of_part(0)

    def update(self, data: bytes | memoryview) -> None:
        """Add *data*."""
        kind = self._expected.kind
        if kind == "crc32":
            self._crc = zlib.crc32(data, self._crc)
        elif kind == "md5-parts":
            self._update_parts(memoryview(data))
        else:
            self._digest.update(data)

    def matches(self) -> bool:
        """True when the bytes so far are those of the sum."""
        return self._value() == self._expected.value

    def _value(self) -> str:
        kind = self._expected.kind
        if kind == "crc32":
            return f"{self._crc:08x}"
        if kind != "md5-parts":
            return self._digest.hexdigest()
        parts = self._parts
        if not parts or self._left != self._size_of_part(len(parts)):
            parts = [*parts, self._digest.digest()]
        return f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"

    def _update_parts(self, data: memoryview) -> None:
        while len(data):
            piece = data[: self._left]
            self._digest.update(piece)
            self._left -= len(piece)
            data = data[len(piece) :]
            if self._left == 0:
                self._parts.append(self._digest.digest())
                self._digest, self._left = _md5(), self._size_of_part(len(self._parts))

    def _size_of_part(self, number: int) -> int:
        sizes = self._expected.part_bytes
        return sizes[min(number, len(sizes) - 1)] if sizes else 0


def sum_matches(expected: ContentSum, pieces: Iterable[bytes]) -> bool:
    """True when *pieces*, joined, have the sum *expected*."""
    running = RunningSum(expected)
    for piece in pieces:
        running.update(piece)
    return running.matches()


def md5_hex(data: bytes) -> str:
    """Hex MD5 of *data*: what S3 has as ETag."""
    return _md5(data).hexdigest()


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


def checked_key(key: str) -> str:
    """*key*, refused when it could point outside the store."""
    parts = key.split("/")
    if not key or key.startswith("/") or ".." in parts or "\0" in key:
        raise InputError(f"{key!r} is not a key inside the store", "keys are relative and have no '..'")
    return key


def checked_prefix(prefix: str) -> str:
    """*prefix* of keys, which may be empty, refused when it could point outside the store."""
    return checked_key(prefix) if prefix else prefix


class ObjectChangedError(OSError):
    """The object no longer has the etag of the request."""


class KeyRefusedError(StoreAccessError):
    """The store cannot hold an object of this name: too long, or below another object."""


class DeniedError(StoreAccessError):
    """The store denies the request: credentials, or what they may do."""


class NoBucketError(StoreAccessError):
    """There is no such bucket."""


class BucketSettings(Config):
    """How one bucket is reached. It holds no credentials: name a profile, or leave it to boto3's chain."""

    endpoint: str | None = Field(
        default=None, description="http(s) address; default: AWS_ENDPOINT_URL, else AWS itself"
    )
    region: str | None = None
    profile: str | None = Field(default=None, description="profile of the shared credentials file")
    anonymous: bool = False
    requester_pays: bool = False
    connections: int = Field(default=16, ge=1, le=1024, description="held open at once")
    low_speed_bytes: int = Field(default=1000, ge=0, description="bytes a second; slower answers are broken off")
    low_speed_seconds: float = Field(default=30.0, gt=0, description="how long an answer may be slower, or stand still")


Stores = dict[str, BucketSettings]  # bucket name -> settings


@dataclass(frozen=True)
class Orphan:
    """An object that can go, and why."""

    key: str
    num_bytes: int
    why: str
