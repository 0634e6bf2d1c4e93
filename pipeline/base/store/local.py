"""A folder as a store: temp file + fsync + rename, link(2) for create-only, a lock file for if-match."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store.protocol import (
    ContentSum,
    KeyRefusedError,
    ObjectChangedError,
    ObjectInfo,
    checked_key,
    checked_prefix,
)

_TEMPORARY = ".tmp-"  # prefix of files on their way in; never listed
_LOCK = f"{_TEMPORARY}lock-"  # never swept: who waits for one must find the same file
_FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO)
_BAD_NAME = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ, errno.EEXIST)


class LocalStore:
    """A store below the folder *root*, which is made when something is put."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        """``file:///absolute/path``."""
        return self.root.as_uri()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :class:`~pipeline.base.store.protocol.Store`. Holds one folder's names at a time, not all."""
        folder, root = checked_prefix(prefix).rpartition("/")[0], str(self.root)
        with file_errors(self.uri):
            for key in _walk(self.root, folder, prefix):
                info = _info(key, f"{root}/{key}")
                if info is not None:
                    yield info

    def head(self, key: str) -> ObjectInfo | None:
        """See Store. The etag is made of inode, size and mtime: every put makes a new inode and mtime."""
        path = self._path(key)
        with file_errors(self.uri):
            return _info(key, path)

    def read(self, key: str, etag: str = "") -> bytes:
        """See Store."""
        with self._opened(key, etag) as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """See Store."""
        with self._opened(key, etag) as file:
            file.seek(start)
            return file.read(max(length, 0))

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """See Store."""
        with self._opened(key, "") as file:
            file.seek(start)
            while piece := file.read(1 << 20):
                yield piece

    def read_with_sum(self, key: str, etag: str = "") -> tuple[bytes, ContentSum | None]:
        """See Store. A folder keeps no sums."""
        return self.read(key, etag), None

    def content_sum(self, key: str, etag: str = "", exact: bool = False) -> ContentSum | None:
        """See Store. A folder keeps no sums."""
        return None

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        with file_errors(self.uri), self._temporary(key) as temporary:
            _write_synced(temporary, data)
            os.replace(temporary, self._path(key))

    def put_file(self, key: str, path: Path) -> None:
        """See Store."""
        with file_errors(self.uri), self._temporary(key) as temporary:
            with path.open("rb") as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
            _stamp(temporary)
            os.replace(temporary, self._path(key))

    def multipart(self, key: str, part_bytes: int) -> LocalParts:
        """See Store."""
        target = self._path(key)
        with file_errors(self.uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            return LocalParts(self.uri, target, part_bytes)

    @contextmanager
    def incoming(self, key: str) -> Iterator[Path]:
        """See Store."""
        target = self._path(key)
        with file_errors(self.uri):
            target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_beside(target)
        try:
            yield temporary
            with file_errors(self.uri):
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                _stamp(temporary)
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def sweep(self, prefix: str = "", older_than_seconds: float = 0.0, dry_run: bool = False) -> int:
        """See Store: temporary files. What is gone meanwhile was another's to count."""
        folder = checked_prefix(prefix).rpartition("/")[0]
        oldest, swept = time.time() - older_than_seconds, 0
        with file_errors(self.uri):
            for key in _walk(self.root, folder, prefix, temporary=True):
                path = self.root / key
                with suppress(FileNotFoundError):
                    if path.lstat().st_mtime <= oldest:
                        if not dry_run:
                            path.unlink()
                        swept += 1
        return swept

    def prune(self) -> None:
        """See Store. A folder that a writer makes use of meanwhile stays, or is made again by the next put."""
        for folder, _, _ in os.walk(self.root, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
        with suppress(OSError):
            os.rmdir(self.root.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store. link(2) fails when the name is taken, so one of many racers wins."""
        with file_errors(self.uri), self._temporary(key) as temporary:
            _write_synced(temporary, data)
            try:
                os.link(temporary, self._path(key))
            except FileExistsError:
                return False
            return True

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """See Store."""
        if self.head(key) is None:
            return False
        lock = self._path(key).with_name(f"{_LOCK}{sha256_hex(key.encode())[:16]}")
        with file_errors(self.uri), lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            info = self.head(key)
            if info is None or info.etag != etag:
                return False
            self.put(key, data)
            return True

    def fetch(self, key: str, path: Path) -> None:
        """See Store."""
        if self.head(key) is None:
            raise FileNotFoundError(f"{self.uri}/{key}")
        LocalStore(path.parent.absolute()).put_file(path.name, self._path(key))

    def delete(self, key: str) -> None:
        """See Store."""
        if self.head(key) is not None:
            with file_errors(self.uri):
                self._path(key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        """See Store: always the file itself."""
        return self._path(key)

    def check_writable(self) -> None:
        """See Store. No folder is made: the nearest one that is there is tried."""
        nearest = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        probe = nearest / f"{_TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreAccessError(
                f"workspace {self.uri} cannot be written: {error.strerror}", "choose another --workspace"
            ) from None

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    @contextmanager
    def _opened(self, key: str, etag: str) -> Iterator[BinaryIO]:
        """The file at *key*, if its etag is *etag* (when given)."""
        with file_errors(self.uri, absent=key), self._path(key).open("rb") as file:
            for is_read in (False, True):  # and nobody wrote into it meanwhile
                if etag and _etag(os.fstat(file.fileno())) != etag:
                    raise ObjectChangedError(f"{self.uri}/{key}: it is no longer what it was")
                if not is_read:
                    yield file

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_beside(target)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


class LocalParts:
    """See PartsWriter: parts are written in place into one temporary file."""

    def __init__(self, uri: str, target: Path, part_bytes: int) -> None:
        self._uri, self._target, self._part_bytes = uri, target, part_bytes
        self._temporary = _temporary_beside(target)
        self._file = self._temporary.open("wb", buffering=0)

    def put_part(self, number: int, data: bytes) -> None:
        """See PartsWriter."""
        view, offset = memoryview(data), number * self._part_bytes
        with file_errors(self._uri):
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written

    def complete(self) -> None:
        """See PartsWriter."""
        with file_errors(self._uri):
            os.fsync(self._file.fileno())
            _stamp(self._temporary)
            os.replace(self._temporary, self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _walk(root: Path, folder: str, prefix: str, temporary: bool = False) -> Iterator[str]:
    """Keys below *folder* that start with *prefix*, in the order of the keys: "a.b" stands before "a/b".

    *temporary*: the files on their way in (whose names hide them) instead of the objects.
    """
    try:
        with os.scandir(root / folder) as entries:
            names = sorted(f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        key = f"{folder}/{name}" if folder else name
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(root, key[:-1], prefix, temporary)
        elif temporary:
            if name.startswith(_TEMPORARY) and not name.startswith(_LOCK) and key.startswith(prefix):
                yield key
        elif key.startswith(prefix) and not name.startswith(_TEMPORARY):
            yield key


def _temporary_beside(target: Path) -> Path:
    return target.with_name(_TEMPORARY + uuid.uuid4().hex)


def _info(key: str, path: Path | str) -> ObjectInfo | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _stamp(path)


def _stamp(path: Path) -> None:
    """Set the mtime from the fine clock: the kernel's own steps by milliseconds, and a freed inode is used again."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


@contextmanager
def file_errors(uri: str, absent: str = "") -> Iterator[None]:
    """Turn the errors of a file system into ours, with the store's name.

    With a key in *absent*, what is no regular file counts as missing, as it would in a bucket.
    """
    try:
        yield
    except (NotADirectoryError, IsADirectoryError) as error:
        if absent:
            raise FileNotFoundError(f"{uri}/{absent}") from None
        raise _store_error(error, uri) from error
    except (FileNotFoundError, ObjectChangedError):
        raise
    except OSError as error:
        raise _store_error(error, uri) from error


def _store_error(error: OSError, uri: str) -> Exception:
    message = f"{uri}: {error.strerror or error}"
    if error.errno in _FULL_OR_BROKEN:
        return FailedError(message, "make room, then give the same command again")
    if error.errno in _BAD_NAME:
        return KeyRefusedError(message, "check the path")
    return StoreAccessError(message, "check the path and its permissions")
