"""Entries that are ranges of stored objects: members of tars, and images that a scan has copied together."""

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

_WINDOW_BYTES = 8_000_000  # of one request, unless a single image is larger
_GAP_BYTES = 65_536  # between two images: cheaper to read along than to ask again


class RangeReader:
    """Reads ``num_bytes`` from ``offset`` of ``file``; neighbours that follow each other come with one request.

    The objects are the product's own, so one that is missing or short is a FailedError: no fault of an image.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _Images(self._store, entries)


class _Images(Iterator[bytes | None]):
    """An iterator that survives an error of one item, which a generator would not."""

    def __init__(self, store: Store, entries: pa.Table) -> None:
        self._store = store
        self._files = entries["file"].to_pylist()
        self._etags = entries["etag"].to_pylist()
        self._starts = entries["offset"].to_numpy()
        self._stops = self._starts + entries["num_bytes"].to_numpy()
        self._breaks = _breaks(self._files, self._starts, self._stops)
        self._at, self._window, self._window_start, self._window_end = 0, b"", 0, 0

    def __next__(self) -> bytes:
        if self._at == len(self._files):
            raise StopIteration
        at, self._at = self._at, self._at + 1
        if at >= self._window_end:
            self._window_end = at  # nothing is held should the next line raise
            last = self._last_of_window(at)
            self._window = self._read(at, int(self._stops[last]))
            self._window_start, self._window_end = int(self._starts[at]), last + 1
        start = int(self._starts[at]) - self._window_start
        return self._window[start : int(self._stops[at]) - self._window_start]

    def _last_of_window(self, at: int) -> int:
        """The last entry that is read together with the one at *at*."""
        last = at
        while (
            last + 1 < len(self._files)
            and not self._breaks[last + 1]
            and self._stops[last + 1] - self._starts[at] <= _WINDOW_BYTES
        ):
            last += 1
        return last

    def _read(self, at: int, stop: int) -> bytes:
        start, where = int(self._starts[at]), f"{self._store.uri}/{self._files[at]}"
        try:
            data = self._store.read_range(self._files[at], start, stop - start, self._etags[at] or "")
        except FileNotFoundError:
            raise FailedError(f"{where} is gone", "give the same command again") from None
        if len(data) < stop - start:
            raise FailedError(f"{where} ends before byte {stop}", "vitpipe verify tells what else is damaged")
        return data


def _breaks(files: list[str], starts: np.ndarray, stops: np.ndarray) -> list[bool]:
    """Whether each entry is no close follower of the one before it."""
    other = [True, *(files[at] != files[at - 1] for at in range(1, len(files)))]
    gaps = np.concatenate([[0], starts[1:] - stops[:-1]]) if len(files) else np.zeros(0)
    return [bool(is_other or gap < 0 or gap > _GAP_BYTES) for is_other, gap in zip(other, gaps, strict=True)]


_OF_THE_FILE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
_THREADS = 8
_AHEAD_ENTRIES = 32
_AHEAD_BYTES = 32_000_000
LARGEST_IMAGE = 1 << 30  # bytes: what is larger is not even read


class ReadRange(NamedTuple):
    """Where the bytes of one entry are."""

    file: str
    row: int
    offset: int
    num_bytes: int
    etag: str


def read_ranges(entries: pa.Table) -> Iterator[ReadRange]:
    """The rows of *entries*, a bounded number of them as Python objects at a time."""
    chosen = entries.select(ReadRange._fields)
    for batch in chosen.to_batches(max_chunksize=1_024):
        yield from map(ReadRange, *(column.to_pylist() for column in batch.columns))


class FileReader:
    """Reads whole objects, and ranges of them, from one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return _Fetched(self, read_ranges(entries))

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

    def __init__(self, reader: FileReader, rows: Iterator[ReadRange]) -> None:
        self._reader, self._rows = reader, rows
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[tuple[ReadRange, Store, str, Future[bytes] | None]] = deque()
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

    def _start(self, want: ReadRange) -> None:
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


def read_entry(store: Store, key: str, want: ReadRange) -> bytes:
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


_ROWS = 2_048
_BYTES = 32_000_000
Value = bytes | None | OSError
Load = Callable[[str, Sequence[ReadRange]], Mapping[int, Value]]


class WindowedReader(Iterator[bytes | None]):
    """Gives the bytes of each row in the order asked for, and goes on after the error of one.

    *load* gets a file and the wanted rows of it, and returns what it found by their positions in that list.
    """

    def __init__(self, entries: pa.Table, load: Load) -> None:
        self._rows, self._load = read_ranges(entries), load
        self._next: ReadRange | None = next(self._rows, None)
        self._found: deque[Value] = deque()

    def __next__(self) -> bytes | None:
        if not self._found:
            self._found.extend(self._read_window())
        if not self._found:
            raise StopIteration
        value = self._found.popleft()
        if isinstance(value, OSError):
            raise value
        return value

    def _read_window(self) -> list[Value]:
        window: list[ReadRange] = []
        num_bytes = 0
        while self._next is not None and len(window) < _ROWS and (num_bytes < _BYTES or not window):
            window.append(self._next)
            num_bytes += self._next.num_bytes
            self._next = next(self._rows, None)
        found: list[Value] = [None] * len(window)
        for file in dict.fromkeys(want.file for want in window):
            places = [at for at, want in enumerate(window) if want.file == file]
            for at, value in self._load(file, [window[at] for at in places]).items():
                found[places[at]] = value
        return found


class InterleavedReader(Iterator[bytes | None]):
    """Rows of several readers: *numbers* says whose each row of *entries* is. Each gets its rows in their order."""

    def __init__(self, numbers: Sequence[int], entries: pa.Table, readers: Mapping[int, CorpusReader]) -> None:
        array = pa.array(numbers, pa.int64())
        self._numbers = iter(numbers)
        self._parts = {number: readers[number].read(entries.filter(pc.equal(array, number))) for number in set(numbers)}

    def __next__(self) -> bytes | None:
        return next(self._parts[next(self._numbers)])
