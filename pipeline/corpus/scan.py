"""Read every entry of a corpus once, in listing order: digests, rejects, and a copy where order matters to the source.

work/scan/000123.entries   the entries of one chunk, an Arrow stream
     scan/000123.images    their bytes one after the other, where they are copied (``spill``)
     scan/000123.parquet   what was found, row by row, put last: a chunk that has it is done
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from pipeline.base.digests import fingerprint
from pipeline.base.disk_table import DiskTable, DiskTableWriter
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.corpus.worker import (
    SCANNED_SCHEMA,
    ChunkRef,
    Depth,
    Row,
    ScanChunk,
    _joined,
    _raise_error,
    chunks_of,
    write_chunks,
)
from pipeline.records.corpus import Corpus

Run = Callable[[Callable[[Row], Row], list[Row]], Iterator[Row]]  # task, rows -> results in any order
_READS_AT_ONCE = 16


@dataclass(frozen=True)
class Scanner:
    """Scans with tasks that *run* spreads over the cluster. What is done stands in *work*, so a rerun skips it."""

    work: Store
    run: Run
    progress: Progress

    def scan(self, corpus: Corpus, depth: Depth, *, spill: bool = False, name: str = "scan") -> DiskTable:
        """Every entry with what was found of it (SCANNED_SCHEMA), in listing order.

        With *spill* the images are copied: the entries then are ranges of objects in ``work``. *name* keeps the files
        of several scans apart.
        """
        task = ScanChunk(corpus.reader, self.work, depth, spill, name, fingerprint(corpus.made_of))
        laid = write_chunks(corpus.entries, self.work, name)
        self.progress.start(f"{name} {corpus.entries.num_rows} images", corpus.entries.num_rows)
        for done in self.run(task, [asdict(chunk) for chunk in laid]) if laid else ():
            _raise_error(done["error"])
            self.progress.advance(done["num_rows"])
        self.progress.finish()
        return self._collected(corpus.entries, task, laid)

    def _collected(self, entries: DiskTable, task: ScanChunk, laid: list[ChunkRef]) -> DiskTable:
        """Entries and results side by side. Reads several results at once: of a bucket each takes a while."""
        writer, chunks = DiskTableWriter(SCANNED_SCHEMA), chunks_of(entries)
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            for start in range(0, len(laid), _READS_AT_ONCE):
                some = laid[start : start + _READS_AT_ONCE]
                for chunk, found in zip(some, pool.map(task.found, some), strict=True):
                    writer.add(_joined(next(chunks), found, task.copy_of(chunk) if task.spill else ""))
        return writer.close()
