"""Cut a listing into chunks for tasks, and lay them where the tasks find them: in few objects, many to each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import FailedError
from pipeline.base.rows import Rows
from pipeline.base.store.protocol import Store

_ROWS = 4_096
_BYTES = 128_000_000
_MAX_CHUNKS = 50_000  # about; a listing that would need more gets larger ones
_PART_BYTES = 32_000_000


@dataclass(frozen=True)
class LaidChunk:
    """Where the entries of chunk *number* stand: *num_bytes* of the object *part*, from *offset*."""

    number: int
    part: str
    offset: int
    num_bytes: int
    num_rows: int
    sha256: str

    def entries(self, work: Store) -> pa.Table:
        """The entries. Raises FailedError when they are not there, or not those that were laid."""
        try:
            data = work.read_range(self.part, self.offset, self.num_bytes)
        except FileNotFoundError:
            raise gone(work, self.part) from None
        if sha256_hex(data) != self.sha256:
            raise FailedError(f"{work.uri} is used by the making of something else", "let that end first")
        return pa.ipc.open_stream(data).read_all()


def gone(work: Store, key: str) -> FailedError:
    """The error for work that is no longer there."""
    return FailedError(f"{work.uri}/{key} is gone: another sharding ended, or it was removed", "give the command again")


def lay_chunks(entries: Rows, work: Store, name: str) -> list[LaidChunk]:
    """Write the chunks of *entries* below ``name/``; what stays in memory is a line per chunk."""
    laid: list[LaidChunk] = []
    held, number = bytearray(), 0
    for chunk in chunks_of(entries):
        data = _table_bytes(chunk)
        part = f"{name}/entries-{number:05d}.bin"
        laid.append(LaidChunk(len(laid), part, len(held), len(data), chunk.num_rows, sha256_hex(data)))
        held += data
        if len(held) >= _PART_BYTES:
            work.put(part, bytes(held))
            held, number = bytearray(), number + 1
    if held:
        work.put(f"{name}/entries-{number:05d}.bin", bytes(held))
    return laid


def chunks_of(entries: Rows) -> Iterator[pa.Table]:
    """The entries in listing order, cut the same way however they were added."""
    total = sum(pc.sum(table["num_bytes"]).as_py() or 0 for table in entries.chunks())
    max_rows = max(_ROWS, -(-entries.num_rows // _MAX_CHUNKS))
    max_bytes = max(_BYTES, -(-total // _MAX_CHUNKS))
    for table in _recut(entries.chunks(), max_rows):
        ends = pc.cumulative_sum(pc.fill_null(table["num_bytes"], 0)).to_numpy()
        start = 0
        while start < table.num_rows:
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(ends.searchsorted(before + max_bytes, side="right")))
            yield table.slice(start, stop - start).combine_chunks()
            start = stop


def _recut(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The rows of *tables*, *num_rows* at a time."""
    held: list[pa.Table] = []
    wanted = num_rows
    for table in tables:
        start = 0
        while start < table.num_rows:
            piece = table.slice(start, wanted)
            held, wanted, start = [*held, piece], wanted - piece.num_rows, start + piece.num_rows
            if not wanted:
                yield pa.concat_tables(held)
                held, wanted = [], num_rows
    if held:
        yield pa.concat_tables(held)


def _table_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
