"""DiskLru: the folder of the cache: its owner, its size, and which files are evicted when others come.

::

    <folder>/                       0700, of this user
        lock                        flock: held while room is made
        ab/<sha256>.tar             a whole file, verified; its readers hold a shared flock
        ab/<sha256>.unverified      a whole file, of which only the size was compared
        ab/<sha256>.lock            flock: held by its fetcher, who touches it as a sign of life
        ab/.part-<random>           on its way in, of its final size; flocked by its fetcher, else a leftover
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.units import format_bytes

PART = ".part-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_OFFERED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_WAY_OUT = "make room there or lower stream.cache_bytes, or set TMPDIR to a folder of another disk"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class CacheError(FailedError):
    """The folder of the cache cannot be written."""


class NoRoomError(CacheError):
    """The disk of the cache is full, and nothing of the cache is left that could go."""


class DiskLru:
    """*limit_bytes* in *folder*. Whole files go in the order of their last opening, those in use last."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self._limit = folder, limit_bytes

    def prepare(self, below: Path) -> None:
        """Make *folder*, and *below* in it. Raises StoreAccessError when it is another user's, or open to others."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_owner()
            below.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreAccessError(f"cache {self.folder}: {error.strerror}", _WAY_OUT) from None

    def new_part(self, below: Path, num_bytes: int) -> tuple[Path, int]:
        """A new file of *num_bytes* in *below*, and a descriptor that has it locked. Raises NoRoomError."""
        path = below / f"{PART}{uuid.uuid4().hex}"
        with self._locked():  # so that nobody takes it for a leftover, and its size counts from the start
            self._evict(self._used() + num_bytes - self._limit)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self._insist(num_bytes, lambda: _reserve(descriptor, num_bytes))
            except BaseException:
                path.unlink(missing_ok=True)
                os.close(descriptor)
                raise
        return path, descriptor

    def write(self, descriptor: int, data: bytes, at: int) -> None:
        """Write all of *data* at byte *at*. Raises NoRoomError."""
        try:
            _write(descriptor, data, at)
        except OSError as error:
            if error.errno not in _FULL:
                raise self._failed(error) from None
            with self._locked():
                self._insist(len(data), lambda: _write(descriptor, data, at))

    def _insist(self, num_bytes: int, write: Callable[[], object]) -> None:
        """Do *write*; as long as the disk is full, evict and do it again."""
        while True:
            try:
                write()
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise self._failed(error) from None
            if not self._evict(num_bytes, spare_used=True):
                raise NoRoomError(
                    f"cache {self.folder}: the disk is full, no room for {format_bytes(num_bytes)}", _WAY_OUT
                )

    def _failed(self, error: OSError) -> CacheError:
        return CacheError(f"cache {self.folder}: {error.strerror}", _WAY_OUT)

    def _check_owner(self) -> None:
        for status in (self.folder.lstat(), self.folder.stat()):
            if status.st_uid != os.geteuid():
                raise StoreAccessError(f"cache {self.folder} belongs to another user", _WAY_OUT)
        if status.st_mode & _OTHERS_MAY_WRITE:
            raise StoreAccessError(f"cache {self.folder} can be written by other users", "remove it, it is made again")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _used(self) -> int:
        """Bytes of whole files and of parts; leftovers are swept."""
        total = 0
        for path, status in self._files():
            if not (_is_transient(path) and _remove_unless_locked(path)):
                total += status.st_size
        return total

    def _evict(self, excess: int, spare_used: bool = False) -> bool:
        """Remove whole files until *excess* bytes are gone; False when nothing could be removed.

        A file in use stays readable for those who have it open, and takes its place on the disk until they close it.
        """
        if excess <= 0:
            return False
        left = excess
        for force in (False,) if spare_used else (False, True):
            files = [(status.st_mtime_ns, path, status.st_size) for path, status in self._files()]
            for _, path, num_bytes in sorted(file for file in files if not _is_transient(file[1])):
                if left > 0 and _remove_unless_locked(path, force):
                    left -= num_bytes
        return left < excess

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):  # another process evicts as well
                yield path, path.lstat()


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Take the disk's blocks now: a disk that is too small is known before anything is fetched."""
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        os.ftruncate(descriptor, 0)
        if error.errno not in _NOT_OFFERED:
            raise
        os.ftruncate(descriptor, num_bytes)


def _write(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _is_transient(path: Path) -> bool:
    """A part or a lock: no file of the cache."""
    return path.name.startswith(PART) or path.suffix == ".lock"


def _remove_unless_locked(path: Path, force: bool = False) -> bool:
    """True when it was removed: it was not locked, or that did not count (*force*)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not force:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
