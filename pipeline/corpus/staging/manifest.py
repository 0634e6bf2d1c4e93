"""The manifest of a staged corpus, its table, and the folder in which it is stored::

    corpora/<name>/request.json       create-only, first: which source and patterns, so that nothing else joins in
                   data/<key>         the objects, under their keys below the source; this folder can be sharded
                   .staging-*         journal of the copy, gone when it is done
                   manifest.parquet   one row per object
                   rejects.parquet    what could not be copied, and why
                   manifest.json      create-only, last: without it nothing is staged

manifest.json holds no host, time or URI: the same content gives the same digest wherever it was copied from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.disk_table import CHUNK_ROWS, DiskTable, DiskTableWriter
from pipeline.base.store.object_file import open_object
from pipeline.base.store.protocol import Store
from pipeline.records.record import Record

REQUEST, MANIFEST, TABLE, REJECTS = "request.json", "manifest.json", "manifest.parquet", "rejects.parquet"
CORPORA = "corpora/"  # the folder of a workspace below which staged corpora are
DATA, JOURNAL = "data/", ".staging-"
# `proof`: the checksum of the source's store that the bytes were compared with: sha256, crc32, md5, md5-parts;
# "none": the store gives none (a folder, or S3 with an encryption whose ETag is no MD5).
STAGED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("num_bytes", pa.int64()),
        ("source_etag", pa.string()),
        ("sha256", pa.string()),
        ("proof", pa.string()),
    ]
)


@dataclass(frozen=True)
class CopyEntry:
    """One object to be copied, as listed; *sha256* when only these bytes will do."""

    key: str
    num_bytes: int
    etag: str
    sha256: str = ""


@dataclass(frozen=True)
class CopiedObject:
    """One object that is stored in the target, as it was read."""

    key: str
    num_bytes: int
    etag: str
    sha256: str
    proof: str


class StageRequest(Record):
    """The source and the patterns of the corpus that is staged under a name."""

    schema_version: Literal[1] = 1
    source: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]


class StageManifest(Record):
    """The manifest. ``digest`` is over keys, sizes and sha256 of all objects; ``proofs`` counts objects."""

    schema_version: Literal[1] = 1
    num_objects: int
    num_bytes: int
    num_rejected: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    proofs: dict[str, int]
    tables: dict[str, str]
    digest: str


def corpus_prefix(name: str) -> str:
    """The folder of the corpus *name* in a workspace."""
    return f"{CORPORA}{name}"


def list_corpora(workspace: Store) -> list[str]:
    """``corpora/NAME`` of each staged corpus that has a manifest: its folder, and its name to ``vitpipe verify``."""
    keys = (info.key for info in workspace.list(CORPORA))
    return sorted(key.rpartition("/")[0] for key in keys if key.endswith(f"/{MANIFEST}") and key.count("/") == 2)


class ManifestWriter:
    """Collects rows of copied objects, in the order of their keys, and their totals."""

    def __init__(self) -> None:
        self._writer, self._columns = DiskTableWriter(STAGED_SCHEMA), [list[object]() for _ in STAGED_SCHEMA]
        self._digest = hashlib.sha256()
        self.num_objects, self.num_bytes, self.proofs = 0, 0, dict[str, int]()

    def add(self, copied: CopiedObject) -> None:
        """Add the next object."""
        row = (copied.key, copied.num_bytes, copied.etag, copied.sha256, copied.proof)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self._digest.update(f"{copied.sha256} {copied.num_bytes} {copied.key}\0".encode())
        self.num_objects += 1
        self.num_bytes += copied.num_bytes
        self.proofs[copied.proof] = self.proofs.get(copied.proof, 0) + 1
        if len(self._columns[0]) == CHUNK_ROWS:
            self._flush()

    def close(self) -> tuple[DiskTable, str]:
        """All rows, and the digest over them."""
        self._flush()
        return self._writer.close(), self._digest.hexdigest()

    def _flush(self) -> None:
        self._writer.add(pa.table(self._columns, schema=STAGED_SCHEMA))
        self._columns = [list[object]() for _ in STAGED_SCHEMA]


def write_table(target: Store, name: str, rows: DiskTable) -> str:
    """Put *rows* as the parquet file *name*, one row group for each chunk; its sha256."""
    with target.incoming(name) as path:
        with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
            for table in rows.chunks():
                writer.write_table(table, row_group_size=CHUNK_ROWS)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def table_digest(target: Store, name: str) -> str:
    """sha256 of the stored table *name*."""
    digest = hashlib.sha256()
    with open_object(target, name) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_staged(target: Store) -> Iterator[CopiedObject]:
    """The rows of the manifest's table, in the order of their keys."""
    with open_object(target, TABLE) as file:
        for batch in pq.ParquetFile(file).iter_batches(CHUNK_ROWS):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield CopiedObject(*row)
