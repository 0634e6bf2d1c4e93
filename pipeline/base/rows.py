"""Rows of one schema that may be more than memory holds: read again and again in bounded chunks, sorted on disk.

    writer = RowsWriter(schema)             rows = writer.close()            for table in rows.chunks(): ...
    spool = Spool(schema, num_buckets)      for table in spool.in_order(): ...

Both keep their files in a temporary folder of this machine that goes when the last object that needs it goes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CHUNK_ROWS = 16_384
_ROWS_OF_A_BUCKET = 60_000
_MAX_BUCKETS = 16_384
_BUFFERED_BYTES = 16_000_000


class Rows:
    """Rows on disk or in memory; ``chunks`` may be called any number of times."""

    def __init__(self, schema: pa.Schema, num_rows: int, table: pa.Table | None, folder: _Folder | None) -> None:
        self.schema, self.num_rows = schema, num_rows
        self._table, self._folder = table, folder

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
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


class RowsWriter:
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

    def close(self) -> Rows:
        """Everything that was added."""
        self._writer.close()
        return Rows(self._schema, self._num_rows, None, self._folder)


class Spool:
    """Sorts rows by a 64-bit key, one bucket of them in memory at a time. The keys should be spread like hashes."""

    def __init__(self, schema: pa.Schema, num_expected: int, tie: str) -> None:
        """*num_expected* rows, about; rows of equal keys are ordered by the column *tie*."""
        self._schema = schema.append(pa.field(_KEY, pa.uint64()))
        self._tie, self._folder = tie, _Folder()
        buckets = min(_MAX_BUCKETS, 1 + num_expected // _ROWS_OF_A_BUCKET)
        self._shift = np.uint64(64 - max(0, buckets - 1).bit_length())
        self._num_buckets = 1 << max(0, buckets - 1).bit_length()
        self._buffered: dict[int, list[pa.Table]] = {}
        self._buffered_bytes = 0
        self._parts: dict[int, int] = {}

    def add(self, table: pa.Table, keys: NDArray[np.uint64]) -> None:
        """Put the rows of *table* at their *keys*."""
        if not table.num_rows:
            return
        keyed = table.append_column(self._schema.field(_KEY), pa.array(keys))
        if self._num_buckets == 1:
            self._keep(0, keyed)
            return
        buckets = keys >> self._shift
        order = np.argsort(buckets, kind="stable")
        keyed = keyed.take(pa.array(order))
        numbers, starts = np.unique(buckets[order], return_index=True)
        for number, start, stop in zip(numbers, starts, [*starts[1:], len(order)], strict=True):
            self._keep(int(number), keyed.slice(start, stop - start))

    def in_order(self) -> Iterator[pa.Table]:
        """All rows by ascending key, a bucket at a time, without the key."""
        self._flush()
        for number in range(self._num_buckets):
            tables = [self._read(number, part) for part in range(self._parts.get(number, 0))]
            if tables:
                bucket = pa.concat_tables(tables).sort_by([(_KEY, "ascending"), (self._tie, "ascending")])
                yield bucket.drop_columns([_KEY])

    def _keep(self, number: int, table: pa.Table) -> None:
        self._buffered.setdefault(number, []).append(table)
        self._buffered_bytes += table.nbytes
        if self._buffered_bytes > _BUFFERED_BYTES:
            self._flush()

    def _flush(self) -> None:
        for number, tables in self._buffered.items():
            part = self._parts.get(number, 0)
            with pa.ipc.new_file(str(self._part(number, part)), self._schema) as writer:
                for table in tables:
                    writer.write_table(table.cast(self._schema))
            self._parts[number] = part + 1
        self._buffered, self._buffered_bytes = {}, 0

    def _read(self, number: int, part: int) -> pa.Table:
        with pa.OSFile(str(self._part(number, part))) as file:  # not mapped: mapped pages would count as resident
            return pa.ipc.open_file(file).read_all()

    def _part(self, number: int, part: int) -> Path:
        return self._folder.path / f"bucket-{number:05d}-{part:05d}.arrow"


_KEY = "spool.key"


class _Folder:
    """A temporary folder that lives as long as what refers to it."""

    def __init__(self) -> None:
        self._handle = tempfile.TemporaryDirectory(prefix="vitpipe-rows-", ignore_cleanup_errors=True)
        self.path = Path(self._handle.name)
