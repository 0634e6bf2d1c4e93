"""Rows of one schema that may be more than memory holds: read again and again in bounded chunks, sorted on disk::

    writer = DiskTableWriter(schema)        rows = writer.close()            for table in rows.chunks(): ...
    sorter = ExternalSorter(schema, num_expected, tie)          for table in sorter.in_order(): ...

Both keep their files in a temporary folder of this machine, which is removed with the last object that needs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

CHUNK_ROWS = 16_384
_ROWS_OF_A_BUCKET = 60_000  # of a sorter, which holds one bucket in memory
_MOST_ROWS_AT_ONCE = 4 * _ROWS_OF_A_BUCKET
_MAX_BUCKETS = 128  # of one file each, with 128 rows of a chunk: cheap to spread, and 2 levels hold 10^9 rows
_KEY_BITS = 64
_BUFFERED_BYTES = 16_000_000  # of all buckets together, before they are written
_KEY = "spool.key"  # the column of the keys


class DiskTable:
    """Rows on disk or in memory; ``chunks`` may be called any number of times."""

    def __init__(self, schema: pa.Schema, num_rows: int, table: pa.Table | None, folder: _Folder | None) -> None:
        self.schema, self.num_rows = schema, num_rows
        self._table, self._folder = table, folder

    @classmethod
    def of(cls, table: pa.Table) -> DiskTable:
        """*table* itself, kept in memory."""
        return cls(table.schema, table.num_rows, table, None)

    def chunks(self) -> Iterator[pa.Table]:
        """The rows in the order they were added, at most CHUNK_ROWS in a table."""
        if self._table is not None:
            for start in range(0, self._table.num_rows, CHUNK_ROWS):
                yield self._table.slice(start, CHUNK_ROWS)
        elif self._folder is not None:
            with pa.OSFile(str(self._folder.path / "rows.arrow")) as file, pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def table(self) -> pa.Table:
        """All rows at once; for what is known to be small."""
        return pa.concat_tables([self.schema.empty_table(), *self.chunks()])


class DiskTableWriter:
    """Collects rows into one temporary file."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._folder = schema, _Folder()
        self._writer = pa.ipc.new_stream(str(self._folder.path / "rows.arrow"), schema)
        self._num_rows = 0

    def add(self, table: pa.Table) -> None:
        """Append *table*, which must have the schema."""
        if table.num_rows:
            self._writer.write_table(table.combine_chunks(), max_chunksize=CHUNK_ROWS)
            self._num_rows += table.num_rows

    def close(self) -> DiskTable:
        """Everything that was added."""
        self._writer.close()
        return DiskTable(self._schema, self._num_rows, None, self._folder)


class ExternalSorter:
    """Sorts rows by a 64-bit key, one bucket of them in memory at a time. The keys should be spread like hashes.

    A bucket is one file, to which every flush appends. One that turns out too large is spread over buckets of its own
    by the next bits of the keys, so that neither files nor memory grow with the rows: 10^9 of them are moved twice.
    """

    def __init__(self, schema: pa.Schema, num_expected: int, tie: str) -> None:
        """*num_expected* rows, about; rows of equal keys are ordered by the column *tie*."""
        buckets = min(_MAX_BUCKETS, 1 + num_expected // _ROWS_OF_A_BUCKET)
        self._tie = tie
        self._buckets = _Buckets(schema.append(pa.field(_KEY, pa.uint64())), max(0, buckets - 1).bit_length(), 0)

    def add(self, table: pa.Table, keys: NDArray[np.uint64]) -> None:
        """Put the rows of *table* at their *keys*."""
        if table.num_rows:
            self._buckets.add(table.append_column(self._buckets.schema.field(_KEY), pa.array(keys)))

    def in_order(self) -> Iterator[pa.Table]:
        """All rows by ascending key, a bucket at a time, without the key. Rows of equal keys are in one table."""
        yield from self._sorted(self._buckets)

    def _sorted(self, buckets: _Buckets) -> Iterator[pa.Table]:
        for number, num_rows in buckets.sizes():
            if num_rows > _MOST_ROWS_AT_ONCE and buckets.bits_used < _KEY_BITS:
                yield from self._sorted(buckets.spread(number))
            else:
                bucket = pa.concat_tables(buckets.read(number)).sort_by([(_KEY, "ascending"), (self._tie, "ascending")])
                yield bucket.drop_columns([_KEY])


class _Buckets:
    """Rows with their keys, in 2**num_bits files by the bits of the key that follow its first *bits_before*."""

    def __init__(self, schema: pa.Schema, num_bits: int, bits_before: int) -> None:
        self.schema, self.bits_used = schema, bits_before + num_bits
        self._folder = _Folder()
        self._shift, self._mask = np.uint64((_KEY_BITS - self.bits_used) % _KEY_BITS), np.uint64((1 << num_bits) - 1)
        self._buffered: dict[int, list[pa.Table]] = {}
        self._buffered_bytes = 0
        self._num_rows: dict[int, int] = {}

    def add(self, keyed: pa.Table) -> None:
        """Put each row of *keyed* into its bucket."""
        buckets = (keyed[_KEY].to_numpy() >> self._shift) & self._mask
        order = np.argsort(buckets, kind="stable")
        keyed = keyed.take(pa.array(order))
        numbers, starts = np.unique(buckets[order], return_index=True)
        for number, start, stop in zip(numbers, starts, [*starts[1:], len(order)], strict=True):
            self._buffered.setdefault(int(number), []).append(keyed.slice(start, stop - start))
        self._buffered_bytes += keyed.nbytes
        if self._buffered_bytes > _BUFFERED_BYTES:
            self._flush()

    def sizes(self) -> list[tuple[int, int]]:
        """(number, rows) of each bucket that has rows, by ascending keys. Nothing is added after this."""
        self._flush()
        return sorted(self._num_rows.items())

    def read(self, number: int) -> Iterator[pa.Table]:
        """The rows of a bucket, a flush at a time."""
        with pa.OSFile(str(self._path(number))) as file:  # not mapped: mapped pages would count as resident
            while file.tell() < file.size():
                yield pa.ipc.open_stream(file).read_all()

    def spread(self, number: int) -> _Buckets:
        """The rows of a bucket in buckets of their own."""
        finer = _Buckets(self.schema, min(_MAX_BUCKETS.bit_length() - 1, _KEY_BITS - self.bits_used), self.bits_used)
        for table in self.read(number):
            finer.add(table)
        return finer

    def _flush(self) -> None:
        for number, tables in self._buffered.items():
            table = pa.concat_tables(tables).cast(self.schema)
            with self._path(number).open("ab") as file, pa.ipc.new_stream(file, self.schema) as writer:
                writer.write_table(table.combine_chunks())
            self._num_rows[number] = self._num_rows.get(number, 0) + table.num_rows
        self._buffered, self._buffered_bytes = {}, 0

    def _path(self, number: int) -> Path:
        return self._folder.path / f"bucket-{number:05d}.arrows"


class _Folder:
    """A temporary folder that lives as long as what refers to it."""

    def __init__(self) -> None:
        self._handle = tempfile.TemporaryDirectory(prefix="vitpipe-rows-", ignore_cleanup_errors=True)
        self.path = Path(self._handle.name)


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in *data*, a whole parquet file.

    Not by threads, nor through a Python file: one of ten processes then aborts at its end (pyarrow 26, exit code -6).
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=list(columns) if columns else None, use_threads=False)
