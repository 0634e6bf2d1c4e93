"""Readers of listed entries: whole objects, ranges of objects, and files that are read from front to back.

All are CorpusReaders: they can be pickled, and open what they need where they are used. What they give are iterators
that survive the error of one image, which a generator would not: the caller goes on with the next ``next``.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store, Stores
from pipeline.records.corpus import CorpusReader

LARGEST_IMAGE = 1 << 30  # bytes: what is larger is not even read

# FileReader fetches ahead from buckets.
_THREADS = 8
_AHEAD_ENTRIES = 32
_AHEAD_BYTES = 32_000_000
# Errors of the operating system that are the fault of one file, not of the disk or the machine.
_FILE_ERRORS = {errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
# RangeReader joins neighbours to one request.
_REQUEST_BYTES = 8_000_000  # of one request, unless a single image is larger
_GAP_BYTES = 65_536  # between two images: cheaper to read along than to send another request
# WindowedReader loads that much together.
_WINDOW_ROWS = 2_048
_WINDOW_BYTES = 32_000_000
_BATCH_ROWS = 1_024  # rows that are Python objects at a time


class ReadRange(NamedTuple):
    """The bytes of one entry: row *row* of *file*, or *num_bytes* from *offset*, or all of it (both -1)."""

    file: str
    row: int
    offset: int
    num_bytes: int
    etag: str


ReadResult = bytes | None | OSError
LoadRows = Callable[[str, Sequence[ReadRange]], Mapping[int, ReadResult]]


def read_ranges(entries: pa.Table) -> Iterator[ReadRange]:
    """The rows of *entries*, a bounded number of them as Python objects at a time."""
    columns = entries.select(ReadRange._fields)
    for batch in columns.to_batches(max_chunksize=_BATCH_ROWS):
        yield from map(ReadRange, *(column.to_pylist() for column in batch.columns))


class FileReader:
    """Reads whole objects, and ranges of them, from one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _FetchedImages(self, read_ranges(entries))

    def find(self, file: str) -> tuple[Store, str]:
        """The store and key that the column ``file`` means."""
        return self._store, file


class UriReader(FileReader):
    """As FileReader, where ``file`` may also be a complete URI: ``s3://bucket/key`` or ``file:///path``."""

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


class _FetchedImages(Iterator[bytes | None]):
    """The bytes of each row. Buckets are read by a few threads ahead.

    The threads are made at the first row that is in a bucket, and end when this object goes.
    """

    def __init__(self, reader: FileReader, rows: Iterator[ReadRange]) -> None:
        self._reader, self._rows = reader, rows
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[tuple[ReadRange, Store, str, Future[bytes] | None]] = deque()
        self._num_bytes = 0  # of all that is ahead

    def __next__(self) -> bytes:
        while len(self._ahead) < _AHEAD_ENTRIES and (self._num_bytes < _AHEAD_BYTES or not self._ahead):
            row = next(self._rows, None)
            if row is None:
                break
            self._start(row)
        if not self._ahead:
            self.close()
            raise StopIteration
        row, store, key, future = self._ahead.popleft()
        self._num_bytes -= max(0, row.num_bytes)
        return future.result() if future is not None else _read_row(store, key, row)

    def _start(self, row: ReadRange) -> None:
        store, key = self._reader.find(row.file)
        future = None
        if store.local_path(key) is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vitpipe-read")
            future = self._pool.submit(_read_row, store, key, row)
        self._ahead.append((row, store, key, future))
        self._num_bytes += max(0, row.num_bytes)

    def close(self) -> None:
        """End the threads, without waiting for their last requests."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def __del__(self) -> None:
        self.close()


def _read_row(store: Store, key: str, row: ReadRange) -> bytes:
    """The bytes of *row*. What is wrong with the file itself is an OSError."""
    if row.num_bytes > LARGEST_IMAGE:
        raise OSError(f"{key}: {row.num_bytes} bytes are no image")
    try:
        if row.offset < 0:
            return store.read(key, row.etag)
        data = store.read_range(key, row.offset, row.num_bytes, row.etag)
    except (StoreAccessError, FailedError) as error:
        raise as_file_error(error, key) from None
    if len(data) != row.num_bytes:
        raise OSError(f"{key}: it ends before byte {row.offset + row.num_bytes}")
    return data


def as_file_error(error: Exception, key: str) -> Exception:
    """*error*, or the OSError that it is when one file of a disk is to blame."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _FILE_ERRORS:
        return OSError(cause.errno, f"{key}: {cause.strerror}")
    return error


class RangeReader:
    """Reads ``num_bytes`` from ``offset`` of ``file``; neighbours that follow each other come with one request.

    For tars of shards, and for images that a scan has copied together. These objects are the product's own, so one
    that is missing or short is a FailedError: no fault of an image.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _JoinedRanges(self._store, entries)


class _JoinedRanges(Iterator[bytes | None]):
    def __init__(self, store: Store, entries: pa.Table) -> None:
        self._store = store
        self._files = entries["file"].to_pylist()
        self._etags = entries["etag"].to_pylist()
        self._starts = entries["offset"].to_numpy()
        self._stops = self._starts + entries["num_bytes"].to_numpy()
        self._is_break = _breaks(self._files, self._starts, self._stops)
        self._next, self._window, self._window_start, self._window_end = 0, b"", 0, 0

    def __next__(self) -> bytes:
        if self._next == len(self._files):
            raise StopIteration
        index, self._next = self._next, self._next + 1
        if index >= self._window_end:
            self._window_end = index  # the window is empty should the next line raise
            last = self._last_of_window(index)
            self._window = self._read(index, int(self._stops[last]))
            self._window_start, self._window_end = int(self._starts[index]), last + 1
        start = int(self._starts[index]) - self._window_start
        return self._window[start : int(self._stops[index]) - self._window_start]

    def _last_of_window(self, index: int) -> int:
        """The last entry that is read together with the one at *index*."""
        last = index
        while (
            last + 1 < len(self._files)
            and not self._is_break[last + 1]
            and self._stops[last + 1] - self._starts[index] <= _REQUEST_BYTES
        ):
            last += 1
        return last

    def _read(self, index: int, stop: int) -> bytes:
        start, uri = int(self._starts[index]), f"{self._store.uri}/{self._files[index]}"
        try:
            data = self._store.read_range(self._files[index], start, stop - start, self._etags[index] or "")
        except FileNotFoundError:
            raise FailedError(f"{uri} is gone", "give the same command again") from None
        if len(data) < stop - start:
            raise FailedError(f"{uri} ends before byte {stop}", "vitpipe verify tells what else is damaged")
        return data


def _breaks(files: list[str], starts: np.ndarray, stops: np.ndarray) -> list[bool]:
    """Whether each entry is no close follower of the one before it."""
    is_new_file = [True, *(files[index] != files[index - 1] for index in range(1, len(files)))]
    gaps = np.concatenate([[0], starts[1:] - stops[:-1]]) if len(files) else np.zeros(0)
    return [bool(is_new or gap < 0 or gap > _GAP_BYTES) for is_new, gap in zip(is_new_file, gaps, strict=True)]


class WindowedReader(Iterator[bytes | None]):
    """The bytes of each row of *entries*, which are loaded a window at a time and file by file.

    *load* gets a file and the rows of it, and returns what it read by their positions in that list: bytes, None for a
    null image, or the OSError of that row.
    """

    def __init__(self, entries: pa.Table, load: LoadRows) -> None:
        self._rows, self._load = read_ranges(entries), load
        self._next: ReadRange | None = next(self._rows, None)
        self._loaded: deque[ReadResult] = deque()

    def __next__(self) -> bytes | None:
        if not self._loaded:
            self._loaded.extend(self._load_window())
        if not self._loaded:
            raise StopIteration
        value = self._loaded.popleft()
        if isinstance(value, OSError):
            raise value
        return value

    def _load_window(self) -> list[ReadResult]:
        window: list[ReadRange] = []
        num_bytes = 0
        while self._next is not None and len(window) < _WINDOW_ROWS and (num_bytes < _WINDOW_BYTES or not window):
            window.append(self._next)
            num_bytes += self._next.num_bytes
            self._next = next(self._rows, None)
        results: list[ReadResult] = [None] * len(window)
        for file in dict.fromkeys(row.file for row in window):
            positions = [index for index, row in enumerate(window) if row.file == file]
            for index, value in self._load(file, [window[position] for position in positions]).items():
                results[positions[index]] = value
        return results


class InterleavedReader(Iterator[bytes | None]):
    """Rows of several readers: *numbers* says which reader each row of *entries* belongs to.

    Each reader gets its rows in their order.
    """

    def __init__(self, numbers: Sequence[int], entries: pa.Table, readers: Mapping[int, CorpusReader]) -> None:
        array = pa.array(numbers, pa.int64())
        self._numbers = iter(numbers)
        self._images = {
            number: readers[number].read(entries.filter(pc.equal(array, number))) for number in set(numbers)
        }

    def __next__(self) -> bytes | None:
        return next(self._images[next(self._numbers)])
