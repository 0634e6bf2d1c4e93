"""Readers of whole objects and of ranges, fetched ahead from buckets.

What is wrong with one file is an OSError for its row. What is wrong with the machine or with the credentials (no file
handles, access denied by the bucket) is not: it would reject a whole corpus, so it stays the error that it is.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store import Store, Stores, open_store

_OF_THE_FILE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
_THREADS = 8
_AHEAD_ENTRIES = 32
_AHEAD_BYTES = 32_000_000
LARGEST_IMAGE = 1 << 30  # bytes: what is larger is not even read


class Want(NamedTuple):
    """Where the bytes of one entry are."""

    file: str
    row: int
    offset: int
    num_bytes: int
    etag: str


def wants(entries: pa.Table) -> Iterator[Want]:
    """The rows of *entries*, a bounded number of them as Python objects at a time."""
    chosen = entries.select(Want._fields)
    for batch in chosen.to_batches(max_chunksize=1_024):
        yield from map(Want, *(column.to_pylist() for column in batch.columns))


class FileReader:
    """Reads whole objects, and ranges of them, from one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _Fetched(self, wants(entries))

    def find(self, file: str) -> tuple[Store, str]:
        """The store and key of what the column ``file`` says."""
        return self._store, file


class UriReader(FileReader):
    """As FileReader, where ``file`` may also be a whole URI: ``s3://bucket/key`` or ``file:///path``."""

    def __init__(self, store: Store, stores: Stores | None) -> None:
        super().__init__(store)
        self._stores = stores
        self._opened: dict[str, Store] = {}

    def find(self, file: str) -> tuple[Store, str]:
        """See FileReader."""
        scheme, slashes, rest = file.partition("://")
        if not slashes:
            return super().find(file)
        top, _, key = rest.partition("/")  # of a file: "", then the path without its first slash
        if top not in self._opened:
            self._opened[top] = open_store(f"{scheme}://{top}/", self._stores)
        return self._opened[top], unquote(key) if scheme == "file" else key


class _Fetched(Iterator[bytes | None]):
    """Gives the bytes of each row, and goes on after the error of one. Buckets are read by a few threads ahead.

    The threads are made at the first row that is in a bucket, and end when this goes.
    """

    def __init__(self, reader: FileReader, rows: Iterator[Want]) -> None:
        self._reader, self._rows = reader, rows
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[tuple[Want, Store, str, Future[bytes] | None]] = deque()
        self._bytes = 0

    def __next__(self) -> bytes:
        while len(self._ahead) < _AHEAD_ENTRIES and (self._bytes < _AHEAD_BYTES or not self._ahead):
            want = next(self._rows, None)
            if want is None:
                break
            self._start(want)
        if not self._ahead:
            self.close()
            raise StopIteration
        want, store, key, future = self._ahead.popleft()
        self._bytes -= max(0, want.num_bytes)
        return future.result() if future is not None else read_entry(store, key, want)

    def _start(self, want: Want) -> None:
        store, key = self._reader.find(want.file)
        future = None
        if store.local_path(key) is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vitpipe-read")
            future = self._pool.submit(read_entry, store, key, want)
        self._ahead.append((want, store, key, future))
        self._bytes += max(0, want.num_bytes)

    def close(self) -> None:
        """End the threads. Nothing that they still do is waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def __del__(self) -> None:
        self.close()


def read_entry(store: Store, key: str, want: Want) -> bytes:
    """The bytes of *want*. What is wrong with the file itself is an OSError."""
    if want.num_bytes > LARGEST_IMAGE:
        raise OSError(f"{key}: {want.num_bytes} bytes are no image")
    try:
        if want.offset < 0:
            return store.read(key, want.etag)
        data = store.read_range(key, want.offset, want.num_bytes, want.etag)
    except (StoreAccessError, FailedError) as error:
        raise as_file_error(error, key) from None
    if len(data) != want.num_bytes:
        raise OSError(f"{key}: it ends before byte {want.offset + want.num_bytes}")
    return data


def as_file_error(error: Exception, key: str) -> Exception:
    """*error*, or the OSError that it is when one file of a disk is to blame."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _OF_THE_FILE:
        return OSError(cause.errno, f"{key}: {cause.strerror}")
    return error
