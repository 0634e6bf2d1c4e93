"""A table of images: CSV or TSV with a header, or JSON lines; each row names a file or s3:// object, and its labels.

Columns: one of ``path``, ``file``, ``image``, ``uri``, ``file_name``; one of ``label``, ``labels``, ``class``. Several
labels stand between ``|``, or as a JSON list; ``[]`` says that none of several holds, an empty cell says nothing. What
a row may point at: manifest_paths.py. Whether a file is there shows when it is read.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote

from pipeline.base.errors import FailedError, InputError, StoreAccessError
from pipeline.base.store.object_file import open_object
from pipeline.base.store.open import normalise_uri
from pipeline.base.store.protocol import ObjectInfo
from pipeline.corpus.sources.location import SourceLocation, suffix_of
from pipeline.corpus.sources.readers import UriReader, as_file_error
from pipeline.corpus.sources.source import (
    DamagedLabelError,
    LabelKind,
    ListingBuilder,
    ListingChunk,
    SourceKind,
    is_text,
    texts_in_cell,
    texts_of,
)
from pipeline.records.corpus import ClassEntry

_SCHEME = re.compile(r"(?i)(pipe|exec|file|s3|https?|ftp|gs|gcs|az|azure|hdfs|data):")


class RefusedPathError(ValueError):
    """A path that is not followed. Its text holds nothing of the path, which can hold a credential."""


def resolve(text: str, *, is_local: bool) -> str:
    """What *text* points at: a key below the manifest's folder, or a URI. Raises RefusedPathError."""
    if "\0" in text:
        raise RefusedPathError("it holds a zero byte")
    if "://" in text or _SCHEME.match(text):
        return _uri(text, is_local=is_local)
    if text.startswith("/"):
        if not is_local:
            raise RefusedPathError("a path of this machine, in a manifest from a bucket")
        return Path(posixpath.normpath(text)).as_uri()
    key = posixpath.normpath(text)
    if key == ".." or key.startswith("../"):
        raise RefusedPathError("it leads out of the manifest's folder")
    return key


def _uri(text: str, *, is_local: bool) -> str:
    scheme = text.partition(":")[0].lower()
    if scheme == "file" and not is_local:
        raise RefusedPathError("a path of this machine, in a manifest from a bucket")
    if scheme not in ("file", "s3"):
        raise RefusedPathError(f"{scheme[:12]}: URIs like this are not read")
    try:
        uri = normalise_uri(text)
    except InputError as error:
        raise RefusedPathError(error.what) from None
    if scheme == "s3" and uri.count("/") < 3:
        raise RefusedPathError("a bucket, not an object in it")
    return uri if scheme == "s3" else Path(posixpath.normpath(unquote(uri.removeprefix("file://")))).as_uri()


_PATHS = ("path", "file", "image", "uri", "file_name", "filename")
_LABELS = ("label", "labels", "class")
_LONGEST_LINE = 4_000_000


class CsvReader(Protocol):
    """What ``csv.reader`` gives."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...


@dataclass(frozen=True)
class ManifestRow:
    """One row: its number (the header is none), or why it cannot be used: ``reason`` is that of a reject."""

    number: int
    path: str = ""
    labels: Sequence[str | None] | None = None
    reason: str = ""
    detail: str = ""


def rows_of(file: BinaryIO, suffix: str, where: str) -> Iterator[ManifestRow]:
    """The rows of *file*. Raises InputError, naming *where*, when it is no such table at all."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        if suffix in ("csv", "tsv"):
            yield from _table_rows(text, "\t" if suffix == "tsv" else ",", where)
        else:
            yield from _json_rows(text)
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8 text", "convert it") from None


def _table_rows(text: io.TextIOWrapper, delimiter: str, where: str) -> Iterator[ManifestRow]:
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    heading = [name.strip().lower() for name in next(_parsed(reader, where), [])]
    path_at, label_at = _column(heading, _PATHS), _column(heading, _LABELS)
    if path_at is None:
        raise InputError(
            f"{where}: no column of paths (columns: {', '.join(heading)[:200]})",
            f"the first line must name one of: {', '.join(_PATHS)}; and for labels: {', '.join(_LABELS)}",
        )
    number = 0
    for cells in _parsed(reader, where):
        if not cells:
            continue
        number += 1
        if len(cells) > len(heading):
            yield ManifestRow(number, reason="row-damaged", detail=f"{len(cells)} cells, {len(heading)} columns")
        else:
            row = [*cells, *[""] * (len(heading) - len(cells))]
            yield _row(number, row[path_at], None if label_at is None else row[label_at])


def _parsed(reader: CsvReader, where: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        what = f"{where} is not a table: line {reader.line_num}: {error}"
        raise InputError(what, "look for a quote that is not closed") from None


def _column(heading: list[str], names: tuple[str, ...]) -> int | None:
    return next((heading.index(name) for name in names if name in heading), None)


def _row(number: int, path: str, cell: str | None) -> ManifestRow:
    if not path.strip():
        return ManifestRow(number, reason="path-missing")
    try:
        return ManifestRow(number, path, None if cell is None else texts_in_cell(cell))
    except DamagedLabelError as error:
        return ManifestRow(number, reason="label-damaged", detail=str(error))


def _json_rows(text: io.TextIOWrapper) -> Iterator[ManifestRow]:
    number = 0
    while line := text.readline(_LONGEST_LINE):
        if not line.strip():
            continue
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            while line and not line.endswith("\n"):
                line = text.readline(_LONGEST_LINE)
            yield ManifestRow(number, reason="row-damaged", detail="a line of this length")
        else:
            yield _json_row(number, line)


def _json_row(number: int, line: str) -> ManifestRow:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return ManifestRow(number, reason="row-damaged", detail="not JSON")
    if not isinstance(fields, dict):
        return ManifestRow(number, reason="row-damaged", detail="not an object")
    path = next((fields[name] for name in _PATHS if name in fields), None)
    if not isinstance(path, str) or not path.strip():
        return ManifestRow(number, reason="path-missing")
    try:
        return ManifestRow(number, path, texts_of(next((fields[name] for name in _LABELS if name in fields), None)))
    except DamagedLabelError as error:
        return ManifestRow(number, reason="label-damaged", detail=str(error))


_SUFFIXES = ("csv", "tsv", "jsonl", "ndjson")
_GUESSED_BYTES = 100_000  # of an object in a bucket, whose size a manifest does not say; to plan shards by


class ManifestSource:
    """See the top of this file."""

    kind = "manifest"
    random_access = True
    may_repeat = True
    labels_are: LabelKind = "either"
    declared: Sequence[ClassEntry] = ()

    def __init__(self, place: SourceLocation) -> None:
        if not _matches(place):
            raise InputError(f"{place.uri} is no manifest", f"name one file: {', '.join(_SUFFIXES)}")
        self._place = place
        self._is_local = place.store.local_path(place.key) is not None
        self.reader = UriReader(place.store, place.stores)

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        key = self._place.key
        collected = ListingBuilder()
        with open_object(self._place.store, key) as file:
            for row in rows_of(file, suffix_of(key), self._place.uri):
                self._add(collected, row)
                if collected.is_full:
                    yield collected.take()
        yield collected.take()

    def _add(self, collected: ListingBuilder, row: ManifestRow) -> None:
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


def _matches(place: SourceLocation) -> bool:
    return bool(place.key) and suffix_of(place.key) in _SUFFIXES


MANIFEST = SourceKind("manifest", _matches, ManifestSource)
