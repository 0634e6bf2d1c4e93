"""The reader of tars: by ranges where they are plain, from front to back where they are gzipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.store import ObjectInfo, Store
from pipeline.corpus.sources.reading import LARGEST_IMAGE, FileReader, Want
from pipeline.corpus.sources.tar_bytes import InflatedBytes
from pipeline.corpus.sources.windows import InTurns, Value, Windows
from pipeline.records.corpus import CorpusReader

_GZIPPED = r"(?i)\.(tgz|tar\.gz)$"


class TarReader:
    """Reads members of the tars of one store."""

    def __init__(self, store: Store) -> None:
        self._readers: dict[int, CorpusReader] = {0: FileReader(store), 1: _GzipReader(store)}

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader. Gzipped archives are inflated once for entries in the order of the archive."""
        numbers = pc.match_substring_regex(entries.column("file"), _GZIPPED).cast(pa.int8()).to_pylist()
        return InTurns(numbers, entries, self._readers)


class _GzipReader:
    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        return Windows(entries, _Inflating(self._store).load)


class _Inflating:
    """Keeps the archive that was read last open, so that the next window goes on where it stopped."""

    def __init__(self, store: Store) -> None:
        self._store, self._file = store, ""
        self._bytes: InflatedBytes | None = None

    def load(self, file: str, rows: Sequence[Want]) -> Mapping[int, Value]:
        if self._bytes is None or self._file != file:
            if self._bytes is not None:
                self._bytes.close()
            self._bytes, self._file = InflatedBytes(self._store, ObjectInfo(file, -1, rows[0].etag)), file
        found: dict[int, Value] = {}
        for at in sorted(range(len(rows)), key=lambda at: rows[at].offset):
            num_bytes = min(rows[at].num_bytes, LARGEST_IMAGE)
            try:
                data = self._bytes.at(rows[at].offset, num_bytes)
                whole = len(data) == rows[at].num_bytes
                found[at] = data if whole else OSError(f"{file}: {self._bytes.damage or 'too large'}")
            except OSError as error:
                found[at] = error
        return found
