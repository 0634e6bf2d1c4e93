"""ShardCache: a shard as an open file. A folder is read in place; from a bucket a shard is fetched once for the node.

One folder serves all ranks, loader processes and runs of a user. Files are named by their digest, so two datasets can
share it without cross talk; they are compared with it while they arrive, piece by piece, and put in place by rename.
For a reader that compares each sample by digest as it reads it, hashing on arrival would do the work twice: what such a
reader fetches is named ``.unverified``, and hashed only when the shard is to be verified as a whole.
One process at a time fetches a shard, the others wait. What is handed out is a descriptor, which stays readable when
the file is evicted. What happens to a file later, on the disk, is for the check of each sample to find.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.retry import MESSAGE_SECONDS, Retry, RetryPolicy, read_object
from pipeline.base.store.local import file_errors
from pipeline.base.store.protocol import Store
from pipeline.records.dataset import ShardEntry
from pipeline.stream.disk_lru import CacheError, DiskLru, NoRoomError

DEFAULT_LIMIT_BYTES = 20_000_000_000
_POLL_SECONDS = 0.02  # how often it is looked whether another process has fetched the shard
_DEAD_SECONDS = 6 * MESSAGE_SECONDS  # a fetcher that shows no life so long is stopped: its lock is taken away


def default_folder() -> Path:
    """The cache of this machine: shared by all ranks and runs of a user."""
    return Path(tempfile.gettempdir()) / f"vitpipe-cache-{os.getuid()}"


class ArrivedDamagedError(DamageError):
    """The store gives other bytes than the card names, also at the second request."""


class ObjectMissingError(DamageError):
    """A shard or an index that the card names is not there."""


class ShardCache:
    """Opens shards and reads indexes. Can be pickled, and used by several threads.

    *verifies*: a shard that is handed out was compared with its digest when it arrived. Else with its size alone, for
    who compares what is read.
    """

    def __init__(
        self,
        store: Store,
        folder: Path | None = None,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        retry: RetryPolicy | None = None,
        verifies: bool = True,
    ) -> None:
        self.folder, self.limit_bytes, self._verifies = folder or default_folder(), limit_bytes, verifies
        self.retry = retry or RetryPolicy()
        self._store, self._disk = store, DiskLru(self.folder, limit_bytes)

    def with_policy(self, retry: RetryPolicy) -> ShardCache:
        """The same folder, under another policy."""
        return ShardCache(self._store, self.folder, self.limit_bytes, retry, self._verifies)

    def verifying(self) -> ShardCache:
        """The same folder, for whole shards that were compared with their digests."""
        return ShardCache(self._store, self.folder, self.limit_bytes, self.retry)

    def open(self, key: str, entry: ShardEntry) -> int:
        """A descriptor of the shard at *key*, for reading; the caller closes it.

        Raises ObjectMissingError, ArrivedDamagedError when its bytes are not the card's, StoreAccessError or
        FailedError when the store has not answered for as long as the policy allows, NoRoomError when the disk is full.
        """
        waiting: Retry | None = None
        while (descriptor := self.open_unless_fetched(key, entry)) is None:
            waiting = waiting or self.retry.start(f"{self._store.uri}/{key}, which another process fetches")
            waiting.pause(_POLL_SECONDS)
        return descriptor

    def open_unless_fetched(self, key: str, entry: ShardEntry) -> int | None:
        """The same, but None while another process fetches the shard."""
        in_place = self._store.local_path(key)
        if in_place is not None:
            with _missing_as_error(key), file_errors(self._store.uri, absent=key):
                return os.open(in_place, os.O_RDONLY)
        file = self._file(key, entry.sha256)
        with file_errors(f"cache {self.folder}"):
            try:
                return self._open_or_fetch(key, entry, file)
            except FileNotFoundError:  # somebody has removed the folder: begin again
                return None

    def read_index(self, key: str, sha256: str) -> bytes:
        """The index at *key*, compared with its digest. Raises as ``open`` does."""
        in_place = self._store.local_path(key) is not None
        file = self._file(key, sha256)
        if not in_place:
            self._disk.prepare(file.parent)
            with suppress(FileNotFoundError), file_errors(f"cache {self.folder}"):
                data = file.read_bytes()
                if sha256_hex(data) == sha256:
                    os.utime(file)
                    return data
        for _ in range(1 if in_place else 2):
            with _missing_as_error(key):
                data = read_object(self._store, key, self.retry)
            if sha256_hex(data) == sha256:
                if not in_place:  # one for which there is no room is not stored
                    with suppress(FileNotFoundError, NoRoomError), file_errors(f"cache {self.folder}"):
                        self._store_file(file, data)
                return data
        raise ArrivedDamagedError(f"{key} is damaged", "run vitpipe verify")

    def forget(self, key: str, entry: ShardEntry, descriptor: int) -> bool:
        """Drop the cached file that *descriptor* has open, so that the next ``open`` fetches the shard again.

        False when it is read in place.
        """
        if self._store.local_path(key) is not None:
            return False
        file = self._file(key, entry.sha256)
        for name in (file, _unverified(file)):
            if _is_at(descriptor, name):  # else another process has dropped it already
                name.unlink(missing_ok=True)
        return True

    def _file(self, key: str, sha256: str) -> Path:
        return self.folder / sha256[:2] / f"{sha256}{Path(key).suffix}"

    def _open_or_fetch(self, key: str, entry: ShardEntry, file: Path) -> int | None:
        self._disk.prepare(file.parent)
        descriptor = self._open_cached(file, entry)
        if descriptor is not None:
            return descriptor
        with _only_fetcher(file.with_suffix(".lock")) as alive:
            if alive is None:
                return None
            if self._verifies:
                _adopt(_unverified(file), file, entry)
            descriptor = self._open_cached(file, entry)  # it may have come meanwhile
            return self._fetch(key, entry, file, alive) if descriptor is None else descriptor

    def _open_cached(self, file: Path, entry: ShardEntry) -> int | None:
        descriptor = _open_whole(file, entry.num_bytes)
        if descriptor is None and not self._verifies:
            descriptor = _open_whole(_unverified(file), entry.num_bytes)
        return descriptor

    def _store_file(self, file: Path, data: bytes) -> None:
        part, descriptor = self._disk.new_part(file.parent, len(data))
        try:
            self._disk.write(descriptor, data, 0)
            os.rename(part, file)
        finally:
            part.unlink(missing_ok=True)
            os.close(descriptor)

    def _fetch(self, key: str, entry: ShardEntry, file: Path, alive: Callable[[], None]) -> int:
        part, descriptor = self._disk.new_part(file.parent, entry.num_bytes)
        try:
            for _ in range(2):
                if self._fill(descriptor, key, entry, alive):
                    os.rename(part, file if self._verifies else _unverified(file))
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    return descriptor
            uri = f"{self._store.uri}/{key}"
            raise ArrivedDamagedError(f"{uri}: its bytes are not those that the card names", "run vitpipe verify")
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            part.unlink(missing_ok=True)

    def _fill(self, descriptor: int, key: str, entry: ShardEntry, alive: Callable[[], None]) -> bool:
        """Write the shard's bytes; False when they are not the card's."""
        retry = self.retry.start(f"{self._store.uri}/{key}", alive, permanent=(CacheError,))
        sha256 = entry.sha256 if self._verifies else None
        download = Download(self._store, key, self._disk, descriptor, (entry.num_bytes, sha256), retry.note_progress)
        try:
            with _missing_as_error(key):
                return retry.call(download.go_on)
        finally:
            download.end()


class Download:
    """A shard on its way from the store to a file, in a thread that may outlive who waits for it."""

    def __init__(
        self,
        store: Store,
        key: str,
        disk: DiskLru,
        descriptor: int,
        expected: tuple[int, str | None],  # size in bytes, sha256 where that is to be compared
        on_piece: Callable[[], None],
    ) -> None:
        self._store, self._key, self._disk, self._on_piece = store, key, disk, on_piece
        self._descriptor, (self._num_bytes, self._sha256) = os.dup(descriptor), expected
        self._digest, self._written = hashlib.sha256(), 0
        self._is_running, self._is_over, self._guard = False, False, threading.Lock()

    def go_on(self) -> bool:
        """Take what is missing still; False when all is not what was expected, or when it is over."""
        with self._guard:
            if self._is_over:
                return False
            self._is_running = True
        try:
            return self._take()
        finally:
            with self._guard:
                self._is_running = False
            self._close()

    def end(self) -> None:
        """Nothing more is wanted. A thread that still waits for the store notices it when something comes."""
        self._is_over = True
        self._close()

    def _take(self) -> bool:
        for piece in self._store.stream(self._key, self._written) if self._written < self._num_bytes else ():
            if self._is_over or self._written + len(piece) > self._num_bytes:
                return False
            if self._sha256:
                self._digest.update(piece)
            self._disk.write(self._descriptor, piece, self._written)
            self._written += len(piece)
            self._on_piece()
        return self._written == self._num_bytes and self._sha256 in (None, self._digest.hexdigest())

    def _close(self) -> None:
        """Close the file when it is over and nobody writes."""
        with self._guard:
            if self._is_over and not self._is_running and self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


@contextmanager
def _missing_as_error(key: str) -> Iterator[None]:
    """A FileNotFoundError of the store as an ObjectMissingError: of the cache's folder it means something else."""
    try:
        yield
    except FileNotFoundError:
        raise ObjectMissingError(f"{key} is missing", "run vitpipe verify") from None


def _unverified(file: Path) -> Path:
    """The name of a shard that was compared with its size alone."""
    return file.with_suffix(".unverified")


def _adopt(arrived: Path, file: Path, entry: ShardEntry) -> None:
    """Make the verified *file* of one that has *arrived* unverified, or remove that when it is damaged."""
    descriptor = _open_whole(arrived, entry.num_bytes)
    if descriptor is None:
        return
    with os.fdopen(descriptor, "rb") as data:
        if hashlib.file_digest(data, "sha256").hexdigest() == entry.sha256:
            os.rename(arrived, file)
        else:
            arrived.unlink(missing_ok=True)


def _open_whole(file: Path, num_bytes: int) -> int | None:
    """A descriptor of the cached *file*, marked as in use; None when it is not there, or of another size."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != num_bytes:
        file.unlink(missing_ok=True)
        os.close(descriptor)
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for an evictor at most; what that removed can still be read
    os.utime(descriptor)
    return descriptor


@contextmanager
def _only_fetcher(lock: Path) -> Iterator[Callable[[], None] | None]:
    """A function to call as a sign of life while fetching; None when another process fetches, or just has."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    is_owner = False
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_owner = _is_at(descriptor, lock)  # else the one before us has removed it: begin again
        if not is_owner and time.time() - os.fstat(descriptor).st_mtime > _DEAD_SECONDS and _is_at(descriptor, lock):
            lock.unlink(missing_ok=True)  # should its holder wake up, what it puts in place is the same
        yield partial(os.utime, descriptor) if is_owner else None
    finally:
        if is_owner and _is_at(descriptor, lock):
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """True when *path* is the file that is open as *descriptor*."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
