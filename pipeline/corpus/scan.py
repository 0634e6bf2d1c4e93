"""``Scanner``: reads every entry of a corpus once, in listing order, for digests and rejects.

Where reading in another order is costly, the images are copied on the way. worker.py draws the files of a scan.
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
    Row,
    ScanChunk,
    ScanDepth,
    chunks_of,
    join_results,
    raise_error,
    write_chunks,
)
from pipeline.records.corpus import Corpus

RunTasks = Callable[[Callable[[Row], Row], list[Row]], Iterator[Row]]  # task, rows -> results in any order
_READS_AT_ONCE = 16


@dataclass(frozen=True)
class Scanner:
    """Scans with tasks that *run* spreads over the cluster. What is done is stored in *work*, so a rerun skips it."""

    work: Store
    run: RunTasks
    progress: Progress

    def scan(self, corpus: Corpus, depth: ScanDepth, *, spill: bool = False, name: str = "scan") -> DiskTable:
        """Every entry with the result of its scan (SCANNED_SCHEMA), in listing order.

        With *spill* the images are copied: the entries then are ranges of objects in ``work``. *name* keeps the files
        of several scans apart.
        """
        task = ScanChunk(corpus.reader, self.work, depth, spill, name, fingerprint(corpus.made_of))
        chunks = write_chunks(corpus.entries, self.work, name)
        self.progress.start(f"{name} {corpus.entries.num_rows} images", corpus.entries.num_rows)
        for done in self.run(task, [asdict(chunk) for chunk in chunks]) if chunks else ():
            raise_error(done["error"])
            self.progress.advance(done["num_rows"])
        self.progress.finish()
        return self._join(corpus.entries, task, chunks)

    def _join(self, entries: DiskTable, task: ScanChunk, chunks: list[ChunkRef]) -> DiskTable:
        """Entries and results side by side. Reads several results at once: from a bucket each takes a while."""
        writer, tables = DiskTableWriter(SCANNED_SCHEMA), chunks_of(entries)
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            for start in range(0, len(chunks), _READS_AT_ONCE):
                batch = chunks[start : start + _READS_AT_ONCE]
                for chunk, result in zip(batch, pool.map(task.result, batch), strict=True):
                    writer.add(join_results(next(tables), result, task.copy_key(chunk) if task.spill else ""))
        return writer.close()
