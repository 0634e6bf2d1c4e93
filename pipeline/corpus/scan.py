"""Read every entry of a corpus once, in listing order: digests, rejects, and a copy where order matters to the source.

work/scan/000123.entries   the entries of one chunk, an Arrow stream
     scan/000123.images    their bytes one after the other, where they are copied (``spill``)
     scan/000123.parquet   what was found, row by row, put last: a chunk that has it is done
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import errors
from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import VitpipeError
from pipeline.base.failpoints import reach
from pipeline.base.progress import Progress
from pipeline.base.rows import Rows, RowsWriter
from pipeline.base.store.protocol import ObjectChangedError, Store
from pipeline.base.tables import read_parquet
from pipeline.corpus.chunks import LaidChunk, chunks_of, gone, lay_chunks
from pipeline.images.check import CheckOptions
from pipeline.images.decode import ImageRejectedError
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.corpus import LISTING_SCHEMA, Corpus, CorpusReader

# bytes: only read (and copied); file: digest of the file; decode: and decoded; pixels: and digest of the pixels
Depth = Literal["bytes", "file", "decode", "pixels"]
Row = dict[str, Any]
Run = Callable[[Callable[[Row], Row], list[Row]], Iterator[Row]]  # task, rows -> results in any order

_READS_AT_ONCE = 16
_FORMAT = 1  # raise it when an equal chunk would give another result than before
_DIGEST = b"vitpipe.chunk"
# `reason` is "" for an image that can be used. `offset` and `num_bytes` are of the copy.
_FOUND = [("sha256", pa.binary(32)), ("pixels", pa.binary(32)), ("reason", pa.string()), ("detail", pa.string())]
_RESULT_SCHEMA = pa.schema([*_FOUND, ("offset", pa.int64()), ("num_bytes", pa.int64())])
SCANNED_SCHEMA = pa.schema([*LISTING_SCHEMA, *pa.schema(_FOUND)])


@dataclass(frozen=True)
class Scanner:
    """Scans with tasks that *run* spreads over the cluster. What is done stands in *work*, so a rerun skips it."""

    work: Store
    run: Run
    progress: Progress

    def scan(self, corpus: Corpus, depth: Depth, *, spill: bool = False, name: str = "scan") -> Rows:
        """Every entry with what was found of it (SCANNED_SCHEMA), in listing order.

        With *spill* the images are copied: the entries then are ranges of objects in ``work``. *name* keeps the files
        of several scans apart.
        """
        task = ScanTask(corpus.reader, self.work, depth, spill, name, fingerprint(corpus.made_of))
        laid = lay_chunks(corpus.entries, self.work, name)
        self.progress.start(f"{name} {corpus.entries.num_rows} images", corpus.entries.num_rows)
        for done in self.run(task, [asdict(chunk) for chunk in laid]) if laid else ():
            _raise_error(done["error"])
            self.progress.advance(done["num_rows"])
        self.progress.finish()
        return self._collected(corpus.entries, task, laid)

    def _collected(self, entries: Rows, task: ScanTask, laid: list[LaidChunk]) -> Rows:
        """Entries and results side by side. Reads several results at once: of a bucket each takes a while."""
        writer, chunks = RowsWriter(SCANNED_SCHEMA), chunks_of(entries)
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            for start in range(0, len(laid), _READS_AT_ONCE):
                some = laid[start : start + _READS_AT_ONCE]
                for chunk, found in zip(some, pool.map(task.found, some), strict=True):
                    writer.add(_joined(next(chunks), found, task.copy_of(chunk) if task.spill else ""))
        return writer.close()


@dataclass(frozen=True)
class ScanTask:
    """Scans the chunk of one row. Travels to the workers, so it holds nothing that is open."""

    reader: CorpusReader
    work: Store
    depth: Depth
    spill: bool
    name: str
    made_of: str

    def __call__(self, row: Row) -> Row:
        """Scan the chunk, unless that is done already. An error of ours comes back as a value."""
        chunk, told = LaidChunk(**row), ""
        try:
            if self._find(chunk) is None:
                self._scan(chunk)
        except VitpipeError as error:
            told = json.dumps([type(error).__name__, error.what, error.way_out])
        return {"number": chunk.number, "num_rows": chunk.num_rows, "error": told}

    def found(self, chunk: LaidChunk) -> pa.Table:
        """What was found of *chunk*, row by row."""
        table = self._find(chunk)
        if table is None:
            raise gone(self.work, self._result_of(chunk))
        return table

    def copy_of(self, chunk: LaidChunk) -> str:
        """The object that the images of *chunk* are copied to."""
        return f"{self.name}/{chunk.number:06d}.images"

    def _result_of(self, chunk: LaidChunk) -> str:
        return f"{self.name}/{chunk.number:06d}.parquet"

    def _digest(self, chunk: LaidChunk) -> bytes:
        """What the result depends on, apart from the images."""
        return fingerprint([_FORMAT, chunk.sha256, self.depth, self.spill, self.made_of]).encode()

    def _find(self, chunk: LaidChunk) -> pa.Table | None:
        """What an earlier attempt found, None when the chunk has to be scanned."""
        try:
            table = read_parquet(self.work.read(self._result_of(chunk)))
        except (FileNotFoundError, pa.ArrowException):
            return None
        metadata = table.schema.metadata or {}
        return table.replace_schema_metadata(None) if metadata.get(_DIGEST) == self._digest(chunk) else None

    def _scan(self, chunk: LaidChunk) -> None:
        with ExitStack() as stack:
            copy = None
            if self.spill:
                path = stack.enter_context(self.work.incoming(self.copy_of(chunk)))
                copy = stack.enter_context(path.open("wb"))
            found = _Pass(self.reader, chunk.entries(self.work), copy).run(self.depth)
        reach("scan.before-result")
        with self.work.incoming(self._result_of(chunk)) as path:
            pq.write_table(found.replace_schema_metadata({_DIGEST: self._digest(chunk)}), path, compression="zstd")


@dataclass
class _Pass:
    """One pass over the images of *entries*, which holds one image at a time (and what the sandbox holds)."""

    reader: CorpusReader
    entries: pa.Table
    copy: BinaryIO | None
    rows: list[Row] = field(default_factory=list)

    def run(self, depth: Depth) -> pa.Table:
        """The result, row by row."""
        images = self._images(digest=depth != "bytes")
        if depth in ("bytes", "file"):
            for _ in images:
                pass
        else:
            options = CheckOptions(pixels_sha256=depth == "pixels")
            for place, _, outcome in shared_sandbox(options).check(images):
                if isinstance(outcome, ImageRejectedError):
                    self.rows[place] |= {"reason": outcome.reason, "detail": outcome.detail}
                elif depth == "pixels":
                    self.rows[place]["pixels"] = bytes.fromhex(outcome.pixels_sha256)
        return pa.Table.from_pylist(self.rows, schema=_RESULT_SCHEMA)

    def _images(self, *, digest: bool) -> Iterator[tuple[int, bytes]]:
        """Row number and bytes of each image that can be read; copied on the way, in listing order."""
        images, offset = self.reader.read(self.entries), 0
        for place in range(self.entries.num_rows):
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
            yield place, data


def _joined(entries: pa.Table, found: pa.Table, copy: str) -> pa.Table:
    """*entries* with what was *found* of them; with *copy* they point into that object.

    Without an etag: copies of equal images are equal, so it does not matter whose attempt put them there.
    """
    count = entries.num_rows
    columns = {name: found[name] for name, _ in _FOUND}
    if copy:
        columns |= {"offset": found["offset"], "num_bytes": found["num_bytes"]}
        columns |= {"file": [copy] * count, "row": [-1] * count, "etag": [""] * count}
    kept = {name: entries[name] for name in LISTING_SCHEMA.names}
    return pa.table(kept | columns, schema=SCANNED_SCHEMA)


def _raise_error(told: str) -> None:
    """Raise the error that a task gave back as text."""
    if told:
        name, what, way_out = json.loads(told)
        raise getattr(errors, name)(what, way_out)
