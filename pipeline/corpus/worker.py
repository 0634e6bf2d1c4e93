"""What a worker of the cluster does with a chunk of a listing: ``ScanChunk``; and how chunks travel to it.

The listing is cut into chunks of a few thousand entries, which are written into few objects, many to each. A worker
gets a ``ChunkRef``, reads its entries from the store, and puts the result beside them::

    work/scan/entries-00012.bin   entries of many chunks, each an Arrow stream
         scan/000123.images       the bytes of chunk 123 one after the other, where they are copied (``spill``)
         scan/000123.parquet      the result of chunk 123, row by row, put last: a chunk that has it is done
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base import errors
from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.disk_table import DiskTable, read_parquet
from pipeline.base.errors import FailedError, VitpipeError
from pipeline.base.failpoints import fail_point
from pipeline.base.store.protocol import ObjectChangedError, Store
from pipeline.images.check import CheckOptions
from pipeline.images.decode import ImageRejectedError
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.corpus import LISTING_SCHEMA, CorpusReader

# bytes: only read (and copied); file: digest of the file; decode: and decoded; pixels: and digest of the pixels
ScanDepth = Literal["bytes", "file", "decode", "pixels"]
Row = dict[str, Any]  # what Ray Data hands to a worker and back
_CHUNK_ROWS = 4_096
_CHUNK_BYTES = 128_000_000  # of images
_MAX_CHUNKS = 50_000  # about; a listing that would need more gets larger ones
_PART_BYTES = 32_000_000  # of an object with the entries of many chunks
_FORMAT = 1  # raise it when an equal chunk would give another result than before
_DIGEST = b"vitpipe.chunk"  # key of the parquet metadata that says what a result belongs to
# `reason` is "" for an image that can be used. `offset` and `num_bytes` are of the copy.
_CHECKED = [("sha256", pa.binary(32)), ("pixels", pa.binary(32)), ("reason", pa.string()), ("detail", pa.string())]
_RESULT_SCHEMA = pa.schema([*_CHECKED, ("offset", pa.int64()), ("num_bytes", pa.int64())])
SCANNED_SCHEMA = pa.schema([*LISTING_SCHEMA, *pa.schema(_CHECKED)])


@dataclass(frozen=True)
class ChunkRef:
    """Where the entries of chunk *number* are stored: *num_bytes* of the object *part*, from *offset*."""

    number: int
    part: str
    offset: int
    num_bytes: int
    num_rows: int
    sha256: str

    def entries(self, work: Store) -> pa.Table:
        """The entries. Raises FailedError when they are not there, or not those that were written."""
        try:
            data = work.read_range(self.part, self.offset, self.num_bytes)
        except FileNotFoundError:
            raise _gone_error(work, self.part) from None
        if sha256_hex(data) != self.sha256:
            raise FailedError(f"{work.uri} is used by the making of something else", "let that end first")
        return pa.ipc.open_stream(data).read_all()


def _gone_error(work: Store, key: str) -> FailedError:
    """The error for work that is no longer there."""
    return FailedError(f"{work.uri}/{key} is gone: another sharding ended, or it was removed", "give the command again")


def write_chunks(entries: DiskTable, work: Store, name: str) -> list[ChunkRef]:
    """Write the chunks of *entries* below ``name/``; what stays in memory is a reference for each."""
    refs: list[ChunkRef] = []
    buffer, number = bytearray(), 0
    for chunk in chunks_of(entries):
        data = _table_bytes(chunk)
        part = f"{name}/entries-{number:05d}.bin"
        refs.append(ChunkRef(len(refs), part, len(buffer), len(data), chunk.num_rows, sha256_hex(data)))
        buffer += data
        if len(buffer) >= _PART_BYTES:
            work.put(part, bytes(buffer))
            buffer, number = bytearray(), number + 1
    if buffer:
        work.put(f"{name}/entries-{number:05d}.bin", bytes(buffer))
    return refs


def chunks_of(entries: DiskTable) -> Iterator[pa.Table]:
    """The entries in listing order, cut the same way however they were added."""
    total = sum(pc.sum(table["num_bytes"]).as_py() or 0 for table in entries.chunks())
    max_rows = max(_CHUNK_ROWS, -(-entries.num_rows // _MAX_CHUNKS))
    max_bytes = max(_CHUNK_BYTES, -(-total // _MAX_CHUNKS))
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
    pieces: list[pa.Table] = []
    missing = num_rows
    for table in tables:
        start = 0
        while start < table.num_rows:
            piece = table.slice(start, missing)
            pieces, missing, start = [*pieces, piece], missing - piece.num_rows, start + piece.num_rows
            if not missing:
                yield pa.concat_tables(pieces)
                pieces, missing = [], num_rows
    if pieces:
        yield pa.concat_tables(pieces)


def _table_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class ScanChunk:
    """Scans the chunk of one row. Travels to the workers, so it has nothing open in it.

    *name* is the folder of its results in *work*; *provenance* is the fingerprint of what shaped the corpus.
    """

    reader: CorpusReader
    work: Store
    depth: ScanDepth
    spill: bool
    name: str
    provenance: str

    def __call__(self, row: Row) -> Row:
        """Scan the chunk, unless that is done already. An error of ours comes back as a value."""
        chunk, error_text = ChunkRef(**row), ""
        try:
            if self._read_result(chunk) is None:
                self._scan(chunk)
        except VitpipeError as error:
            error_text = json.dumps([type(error).__name__, error.message, error.way_out])
        return {"number": chunk.number, "num_rows": chunk.num_rows, "error": error_text}

    def result(self, chunk: ChunkRef) -> pa.Table:
        """The stored result of *chunk*, row by row. Raises FailedError when it is gone."""
        table = self._read_result(chunk)
        if table is None:
            raise _gone_error(self.work, self._result_key(chunk))
        return table

    def copy_key(self, chunk: ChunkRef) -> str:
        """The object that the images of *chunk* are copied to."""
        return f"{self.name}/{chunk.number:06d}.images"

    def _result_key(self, chunk: ChunkRef) -> str:
        return f"{self.name}/{chunk.number:06d}.parquet"

    def _digest(self, chunk: ChunkRef) -> bytes:
        """What the result depends on, apart from the images."""
        return fingerprint([_FORMAT, chunk.sha256, self.depth, self.spill, self.provenance]).encode()

    def _read_result(self, chunk: ChunkRef) -> pa.Table | None:
        """The result of an earlier attempt, None when the chunk has to be scanned."""
        try:
            table = read_parquet(self.work.read(self._result_key(chunk)))
        except (FileNotFoundError, pa.ArrowException):
            return None
        metadata = table.schema.metadata or {}
        return table.replace_schema_metadata(None) if metadata.get(_DIGEST) == self._digest(chunk) else None

    def _scan(self, chunk: ChunkRef) -> None:
        with ExitStack() as stack:
            copy = None
            if self.spill:
                path = stack.enter_context(self.work.incoming(self.copy_key(chunk)))
                copy = stack.enter_context(path.open("wb"))
            result = _Pass(self.reader, chunk.entries(self.work), copy).run(self.depth)
        fail_point("scan.before-result")
        with self.work.incoming(self._result_key(chunk)) as path:
            pq.write_table(result.replace_schema_metadata({_DIGEST: self._digest(chunk)}), path, compression="zstd")


@dataclass
class _Pass:
    """One pass over the images of *entries*. In memory is one image at a time, and what the sandbox has of them."""

    reader: CorpusReader
    entries: pa.Table
    copy: BinaryIO | None
    rows: list[Row] = field(default_factory=list)

    def run(self, depth: ScanDepth) -> pa.Table:
        """The result, row by row."""
        images = self._images(digest=depth != "bytes")
        if depth in ("bytes", "file"):
            for _ in images:
                pass
        else:
            options = CheckOptions(pixels_sha256=depth == "pixels")
            for index, _, outcome in shared_sandbox(options).check(images):
                if isinstance(outcome, ImageRejectedError):
                    self.rows[index] |= {"reason": outcome.reason, "detail": outcome.detail}
                elif depth == "pixels":
                    self.rows[index]["pixels"] = bytes.fromhex(outcome.pixels_sha256)
        return pa.Table.from_pylist(self.rows, schema=_RESULT_SCHEMA)

    def _images(self, *, digest: bool) -> Iterator[tuple[int, bytes]]:
        """Row number and bytes of each image that can be read; copied on the way, in listing order."""
        images, offset = self.reader.read(self.entries), 0
        for index in range(self.entries.num_rows):
            row: Row = {"reason": "", "detail": "", "offset": offset, "num_bytes": 0}
            self.rows.append(row)
            try:
                data = next(images)
            except OSError as error:
                reason = "changed" if isinstance(error, ObjectChangedError) else "unreadable"
                row |= {"reason": reason, "detail": type(error).__name__}
                continue
            if data is None:
                row["reason"] = "null-image"
                continue
            row["num_bytes"] = len(data)
            if digest:
                row["sha256"] = bytes.fromhex(sha256_hex(data))
            if self.copy is not None:
                self.copy.write(data)
                offset += len(data)
            yield index, data


def join_results(entries: pa.Table, result: pa.Table, copy: str) -> pa.Table:
    """*entries* with the *result* of their scan (SCANNED_SCHEMA); if *copy* is not empty they point into that object.

    Without an etag: copies of equal images are equal, so it does not matter whose attempt put them there.
    """
    count = entries.num_rows
    columns = {name: entries[name] for name in LISTING_SCHEMA.names}
    columns |= {name: result[name] for name, _ in _CHECKED}
    if copy:
        columns |= {"offset": result["offset"], "num_bytes": result["num_bytes"]}
        columns |= {"file": [copy] * count, "row": [-1] * count, "etag": [""] * count}
    return pa.table(columns, schema=SCANNED_SCHEMA)


def raise_error(error_text: str) -> None:
    """Raise the error that a worker gave back as text; nothing when it is empty."""
    if error_text:
        name, message, way_out = json.loads(error_text)
        raise getattr(errors, name)(message, way_out)
