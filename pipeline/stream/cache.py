"""A shard as a local file. A local workspace is read in place; from S3 a shard is fetched once per node.

Cached files are named by their digest, so two datasets or two runs can share a folder without cross talk; they are
verified when they arrive and put in place by rename. The least recently used ones go when the limit is passed.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.records.dataset import ShardEntry

DEFAULT_LIMIT_BYTES = 20_000_000_000


def default_folder() -> Path:
    """The cache of this machine: shared by all ranks and runs of a user."""
    return Path(tempfile.gettempdir()) / f"vitpipe-cache-{os.getuid()}"


class ShardCache:
    """Gives local paths of shards."""

    def __init__(self, store: Store, folder: Path | None = None, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._store, self._folder, self._limit = store, folder or default_folder(), limit_bytes

    def path(self, key: str, entry: ShardEntry) -> Path:
        """The local file of the shard at *key*. Raises DamageError when the fetched bytes are not the card's."""
        in_place = self._store.local_path(key)
        if in_place is not None:
            return in_place
        cached = self._cached(entry)
        if cached.exists() and cached.stat().st_size == entry.num_bytes:
            os.utime(cached)
            return cached
        self._fetch(key, entry, cached)
        return cached

    def forget(self, key: str, entry: ShardEntry) -> bool:
        """Drop the cached file, so that the next ``path`` fetches it again. False when it is read in place."""
        if self._store.local_path(key) is not None:
            return False
        self._cached(entry).unlink(missing_ok=True)
        return True

    def _cached(self, entry: ShardEntry) -> Path:
        return self._folder / entry.sha256[:2] / f"{entry.sha256}.tar"

    def _fetch(self, key: str, entry: ShardEntry, cached: Path) -> None:
        cached.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._evict(entry.num_bytes)
        incoming = cached.with_name(f"{cached.name}.{os.getpid()}")
        try:
            self._store.fetch(key, incoming)
            if sha256_hex(incoming.read_bytes()) != entry.sha256:
                raise DamageError(f"{self._store.uri}/{key}: its bytes are not those that the card names")
            os.replace(incoming, cached)
        finally:
            incoming.unlink(missing_ok=True)

    def _evict(self, needed_bytes: int) -> None:
        files = []
        for path in self._folder.glob("*/*.tar"):
            with suppress(FileNotFoundError):  # another process evicts as well
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(num_bytes for _, num_bytes, _ in files) + needed_bytes
        for _, num_bytes, path in sorted(files):
            if total <= self._limit:
                return
            total -= num_bytes
            path.unlink(missing_ok=True)
