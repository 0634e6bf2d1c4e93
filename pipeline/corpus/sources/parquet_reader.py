"""Reads image bytes out of parquet files: batch by batch, never a whole row group, which may be larger than memory."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import FailedError, StoreAccessError
from pipeline.base.store import Store
from pipeline.base.store.reading import open_object
from pipeline.corpus.sources.reading import Want, as_file_error
from pipeline.corpus.sources.windows import Value, Windows

_BUFFER = 1 << 20
_BATCH_BYTES = 8_000_000
_BATCH_ROWS = 1_024


def open_parquet(store: Store, key: str, etag: str) -> pq.ParquetFile:
    """The parquet file at *key*, pinned to *etag*, to be read page by page."""
    return pq.ParquetFile(open_object(store, key, etag), buffer_size=_BUFFER, pre_buffer=False)


class ParquetReader:
    """Reads the images of *column*. Rows that stand together in a file are read once; any order is right, but slow.

    A damaged page costs the wanted rows of its row group that stand behind it.
    """

    def __init__(self, store: Store, column: str) -> None:
        self._store, self._column = store, column

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return Windows(entries, _Files(self._store, self._column).load)


class _Files:
    """Keeps the file that was read last open, so that the next window goes on where it stopped."""

    def __init__(self, store: Store, column: str) -> None:
        self._store, self._column = store, column
        self._name = ""
        self._cursor: _Cursor | None = None

    def load(self, file: str, rows: Sequence[Want]) -> Mapping[int, Value]:
        try:
            if self._cursor is None or self._name != file:
                self._cursor, self._name = self._open(file, rows[0].etag), file
        except (StoreAccessError, FailedError, OSError, pa.ArrowException) as error:
            told = _told(file, error)
            return dict.fromkeys(range(len(rows)), told)
        return {at: self._cursor.value(rows[at].row) for at in sorted(range(len(rows)), key=lambda at: rows[at].row)}

    def _open(self, file: str, etag: str) -> _Cursor:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None
        return _Cursor(file, open_parquet(self._store, file, etag), self._column)


class _Cursor:
    """A place inside one file: a row group, and the batch of it that was decoded last."""

    def __init__(self, name: str, parquet: pq.ParquetFile, column: str) -> None:
        self._name, self._parquet = name, parquet
        self._is_struct = pa.types.is_struct(parquet.schema_arrow.field(column).type)
        self._columns = [f"{column}.bytes" if self._is_struct else column]
        groups = [parquet.metadata.row_group(at) for at in range(parquet.num_row_groups)]
        self._starts = [0]  # first row of each row group, and behind the last
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)
        self._broken: dict[int, OSError] = {}
        self._group, self._first = -1, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._values: pa.Array = pa.nulls(0)

    def value(self, row: int) -> Value:
        """The image of *row*, or the OSError that stands for it."""
        group = bisect.bisect_right(self._starts, row) - 1
        if group in self._broken:
            return self._broken[group]
        try:
            if group != self._group or row < self._first:
                self._begin(group)
            while row >= self._first + len(self._values):
                self._first += len(self._values)
                self._values = next(self._batches).column(0)
        except (StoreAccessError, FailedError, OSError, pa.ArrowException, StopIteration, IndexError) as error:
            self._group = -1
            self._broken[group] = _told(self._name, error)
            return self._broken[group]
        value = self._values[row - self._first].as_py()
        return value.get("bytes") if isinstance(value, dict) else value

    def close(self) -> None:
        """Close the file."""
        self._parquet.close(force=True)

    def _begin(self, group: int) -> None:
        size = column_bytes(self._parquet.metadata.row_group(group), self._columns[0].split(".")[0])
        num_rows = self._starts[group + 1] - self._starts[group]
        batch = max(1, min(_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, size)))
        self._batches = self._parquet.iter_batches(batch, row_groups=[group], columns=self._columns, use_threads=False)
        self._group, self._first, self._values = group, self._starts[group], pa.nulls(0)


def column_bytes(group: pq.RowGroupMetaData, column: str) -> int:
    """Bytes of *column* in a row group, as they are before compression."""
    chunks = (group.column(index) for index in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _told(file: str, error: Exception) -> OSError:
    """*error* as that of the file. Raises what is wrong with the store instead."""
    told = as_file_error(error, file)
    if isinstance(told, StoreAccessError | FailedError):
        raise told from None
    if isinstance(told, OSError) and file in str(told):
        return told
    return OSError(f"{file}: {type(error).__name__}")
