"""``list_source``: source URI -> the objects to copy, listed on disk: there may be many millions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.disk_table import CHUNK_ROWS, DiskTable, DiskTableWriter
from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.base.store.open import normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import ObjectInfo, Store, Stores
from pipeline.corpus.sources.walk import is_unicode, printable, walk
from pipeline.corpus.staging.manifest import CopyEntry
from pipeline.corpus.staging.recipe import StageRecipe
from pipeline.records.corpus import Reject

_SCHEMA = pa.schema([("key", pa.string()), ("num_bytes", pa.int64()), ("etag", pa.string())])
_TEMPORARY = ".tmp-"  # begins names that a folder as target hides


@dataclass(frozen=True)
class CopySource:
    """The objects of *store*: the single one at *key*, or all of them when *key* is empty."""

    store: Store
    uri: str
    key: str = ""

    def objects(self) -> Iterator[ObjectInfo | Reject]:
        """Every object, in the order of their keys. Of a folder also hidden files, links followed as sharding does."""
        if self.key:
            info = self.store.head(self.key)
            if info is not None:
                yield info
        elif (path := self.store.local_path("x")) is not None:
            yield from walk(path.parent, lambda name: not name.startswith(_TEMPORARY), hidden=True)
        else:
            yield from self.store.list()


@dataclass(frozen=True)
class Listing:
    """What is to be copied. *rejects*: names that not every store can have, broken links, what is no file."""

    rows: DiskTable
    num_bytes: int
    num_left_out: int
    rejects: list[Reject]

    def entries(self) -> Iterator[CopyEntry]:
        """The objects, in the order of their keys."""
        for table in self.rows.chunks():
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield CopyEntry(*row)


def open_source(uri: str, stores: Stores) -> CopySource:
    """The source at *uri*: a folder or prefix, or one object. Raises InputError for a path that does not exist."""
    uri = normalise_uri(uri)
    store = open_store(uri, stores)
    path = store.local_path("x")
    if path is not None and path.parent.is_dir():
        return CopySource(store, uri)
    if path is None and (uri.count("/") < 3 or next(iter(store.list()), None) is not None):
        return CopySource(store, uri)
    parent, name = split_uri(uri)
    single = open_store(parent, stores)
    if single.head(name) is None:
        raise InputError(f"{uri}: there is nothing", "name a folder, an object, or an s3:// prefix")
    return CopySource(single, uri, name)


def list_source(source: CopySource, recipe: StageRecipe, progress: Progress) -> Listing:
    """List what *recipe* takes of *source*. Raises InputError when that is nothing."""
    key_filter, writer = recipe.key_filter(), DiskTableWriter(_SCHEMA)
    buffer: list[ObjectInfo] = []
    rejects: list[Reject] = []
    num_bytes = num_left_out = 0
    progress.start(f"list {source.uri}")
    for info in source.objects():
        if not key_filter(info.origin if isinstance(info, Reject) else info.key):
            num_left_out += 1
        elif isinstance(info, Reject):
            rejects.append(Reject(printable(info.origin), info.reason, info.detail))
        elif reason := _name_problem(info.key):
            rejects.append(Reject(printable(info.key), reason))
        else:
            buffer.append(info)
            num_bytes += info.num_bytes
        if len(buffer) == CHUNK_ROWS:
            progress.advance(len(buffer))
            writer.add(_table(buffer))
            buffer = []
    progress.advance(len(buffer))
    progress.finish()
    writer.add(_table(buffer))
    rows = writer.close()
    if not rows.num_rows and not rejects:
        why = "include and exclude leave nothing of it" if num_left_out else "it is empty"
        raise InputError(f"nothing to copy from {source.uri}: {why}", "check the source and the patterns")
    return Listing(rows, num_bytes, num_left_out, rejects)


def _table(infos: list[ObjectInfo]) -> pa.Table:
    columns = [[info.key for info in infos], [info.num_bytes for info in infos], [info.etag for info in infos]]
    return pa.table(columns, schema=_SCHEMA)


def _name_problem(key: str) -> str:
    """Why *key* cannot be copied under its name into any store; "" when it can."""
    if not is_unicode(key):
        return "name-not-unicode"
    parts = key.split("/")
    hidden = any(part.startswith(_TEMPORARY) for part in parts)
    return "name-not-storable" if hidden or "\0" in key or {"", ".", ".."} & set(parts) else ""
