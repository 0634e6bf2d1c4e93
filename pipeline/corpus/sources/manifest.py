"""A table of images: CSV or TSV with a header, or JSON lines; each row names a file or s3:// object, and its labels.

Columns: one of ``path``, ``file``, ``image``, ``uri``, ``file_name``; one of ``label``, ``labels``, ``class``. Several
labels stand between ``|``, or as a JSON list; ``[]`` says that none of several holds, an empty cell says nothing. What
a row may point at: manifest_paths.py. Whether a file is there shows when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import unquote

from pipeline.base.errors import FailedError, InputError, StoreAccessError
from pipeline.base.store import ObjectInfo
from pipeline.base.store.reading import open_object
from pipeline.corpus.sources.manifest_paths import RefusedPathError, resolve
from pipeline.corpus.sources.manifest_rows import ManifestRow, rows_of
from pipeline.corpus.sources.place import Place, suffix_of
from pipeline.corpus.sources.reading import UriReader, as_file_error
from pipeline.corpus.sources.source import Collected, Found, LabelsAre, SourceKind, is_text
from pipeline.records.corpus import ClassEntry

_SUFFIXES = ("csv", "tsv", "jsonl", "ndjson")
_GUESSED_BYTES = 100_000  # of an object in a bucket, whose size a manifest does not say; to plan shards by


class ManifestSource:
    """See the top of this file."""

    kind = "manifest"
    random_access = True
    may_repeat = True
    labels_are: LabelsAre = "either"
    declared: Sequence[ClassEntry] = ()

    def __init__(self, place: Place) -> None:
        if not _matches(place):
            raise InputError(f"{place.uri} is no manifest", f"name one file: {', '.join(_SUFFIXES)}")
        self._place = place
        self._is_local = place.store.local_path(place.key) is not None
        self.reader = UriReader(place.store, place.stores)

    def chunks(self) -> Iterator[Found]:
        """See Source."""
        key = self._place.key
        collected = Collected()
        with open_object(self._place.store, key) as file:
            for row in rows_of(file, suffix_of(key), self._place.uri):
                self._add(collected, row)
                if collected.is_full:
                    yield collected.take()
        yield collected.take()

    def _add(self, collected: Collected, row: ManifestRow) -> None:
        where = f"{self._place.key}:{row.number}"
        if row.reason:
            collected.reject(where, row.reason, row.detail)
            return
        try:
            target = resolve(row.path, is_local=self._is_local)
        except RefusedPathError as error:
            collected.reject(where, "path-refused", str(error))
            return
        origin = unquote(target.removeprefix("file://")) if target.startswith("file://") else target
        if not is_text(target) or not is_text(origin):
            collected.reject(where, "name-not-unicode")
            return
        info = self._seen(target)
        num_bytes, etag = (info.num_bytes, info.etag) if info is not None else (_GUESSED_BYTES, "")
        collected.add(origin, target, row.labels, num_bytes, etag)

    def _seen(self, target: str) -> ObjectInfo | None:
        """What is known of a local file. Objects in buckets are not asked for one by one: that would take hours."""
        store, key = self.reader.find(target)
        if store.local_path(key) is None:
            return None
        try:
            return store.head(key)
        except (StoreAccessError, FailedError) as error:
            if isinstance(as_file_error(error, key), OSError):
                return None
            raise


def _matches(place: Place) -> bool:
    return bool(place.key) and suffix_of(place.key) in _SUFFIXES


MANIFEST = SourceKind("manifest", _matches, ManifestSource)
