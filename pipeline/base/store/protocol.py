"""What a store can do. Keys are relative to the store's URI, with ``/`` between parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.base.errors import InputError


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its key, its size, and an etag that changes with its content."""

    key: str
    num_bytes: int
    etag: str


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

    def read(self, key: str) -> bytes:
        """The whole object."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """*length* bytes from *start*; fewer at the end of the object."""

    def put(self, key: str, data: bytes) -> None:
        """Create or replace the object."""

    def put_file(self, key: str, path: Path) -> None:
        """Create or replace the object with the content of the local file *path*."""

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


def checked_key(key: str) -> str:
    """*key*, refused when it could point outside the store."""
    parts = key.split("/")
    if not key or key.startswith("/") or ".." in parts or "\0" in key:
        raise InputError(f"{key!r} is not a key inside the store", "keys are relative and have no '..'")
    return key


def checked_prefix(prefix: str) -> str:
    """*prefix* of keys, which may be empty, refused when it could point outside the store."""
    return checked_key(prefix) if prefix else prefix
