"""A table of images: CSV or TSV with a header, or JSON lines; each row names a file or s3:// object, and its labels.

Columns: one of ``path``, ``file``, ``image``, ``uri``, ``file_name``; one of ``label``, ``labels``, ``class``. Several
labels stand between ``|``, or as a JSON list; ``[]`` says that none of several holds, an empty cell says nothing.
``resolve_path`` says what a row may point at. Whether a file is there shows when it is read.
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
    parse_label_cell,
    parse_labels,
)
from pipeline.corpus.sources.walk import is_unicode
from pipeline.records.corpus import ClassEntry

_SUFFIXES = ("csv", "tsv", "jsonl", "ndjson")
_PATHS = ("path", "file", "image", "uri", "file_name", "filename")
_LABELS = ("label", "labels", "class")
_LONGEST_LINE = 4_000_000  # characters of a line of JSON
_GUESSED_BYTES = 100_000  # of an object in a bucket, whose size a manifest does not say; to plan shards by
_SCHEME = re.compile(r"(?i)(pipe|exec|file|s3|https?|ftp|gs|gcs|az|azure|hdfs|data):")


class ManifestSource:
    """See the top of this file."""

    kind = "manifest"
    random_access = True
    may_repeat = True
    label_kind: LabelKind = "either"
    declared_classes: Sequence[ClassEntry] = ()

    def __init__(self, location: SourceLocation) -> None:
        if not _matches(location):
            raise InputError(f"{location.uri} is no manifest", f"name one file: {', '.join(_SUFFIXES)}")
        self._location = location
        self._is_local = location.store.local_path(location.key) is not None
        self.reader = UriReader(location.store, location.stores)

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source."""
        key = self._location.key
        builder = ListingBuilder()
        with open_object(self._location.store, key) as file:
            for row in _rows_of(file, suffix_of(key), self._location.uri):
                self._add(builder, row)
                if builder.is_full:
                    yield builder.take()
        yield builder.take()

    def _add(self, builder: ListingBuilder, row: _ManifestRow) -> None:
        row_name = f"{self._location.key}:{row.number}"
        if row.reason:
            builder.reject(row_name, row.reason, row.detail)
            return
        try:
            target = resolve_path(row.path, is_local=self._is_local)
        except RefusedPathError as error:
            builder.reject(row_name, "path-refused", str(error))
            return
        origin = unquote(target.removeprefix("file://")) if target.startswith("file://") else target
        if not is_unicode(target) or not is_unicode(origin):
            builder.reject(row_name, "name-not-unicode")
            return
        info = self._local_info(target)
        num_bytes, etag = (info.num_bytes, info.etag) if info is not None else (_GUESSED_BYTES, "")
        builder.add(origin, target, row.labels, num_bytes, etag)

    def _local_info(self, target: str) -> ObjectInfo | None:
        """Size and etag of a local file; None for objects in buckets: a request for each would take hours."""
        store, key = self.reader.find(target)
        if store.local_path(key) is None:
            return None
        try:
            return store.head(key)
        except (StoreAccessError, FailedError) as error:
            if isinstance(as_file_error(error, key), OSError):
                return None
            raise


class RefusedPathError(ValueError):
    """A path that is not followed. Its text holds nothing of the path, which can hold a credential."""


def resolve_path(text: str, *, is_local: bool) -> str:
    """What *text* points at: a key below the manifest's folder, or a URI. Raises RefusedPathError.

    The author of a manifest may be somebody else than the person who runs the command, so nothing in *text* is expanded
    or run. A relative path starts at the manifest's folder and stays below it. Any manifest may name ``s3://`` objects.
    *is_local*: the manifest is a file of this machine, and only then may it name other files of this machine.
    """
    if "\0" in text:
        raise RefusedPathError("it holds a zero byte")
    if "://" in text or _SCHEME.match(text):
        return _resolve_uri(text, is_local=is_local)
    if text.startswith("/"):
        if not is_local:
            raise RefusedPathError("a path of this machine, in a manifest from a bucket")
        return Path(posixpath.normpath(text)).as_uri()
    key = posixpath.normpath(text)
    if key == ".." or key.startswith("../"):
        raise RefusedPathError("it leads out of the manifest's folder")
    return key


def _resolve_uri(text: str, *, is_local: bool) -> str:
    scheme = text.partition(":")[0].lower()
    if scheme == "file" and not is_local:
        raise RefusedPathError("a path of this machine, in a manifest from a bucket")
    if scheme not in ("file", "s3"):
        raise RefusedPathError(f"{scheme[:12]}: URIs like this are not read")
    try:
        uri = normalise_uri(text)
    except InputError as error:
        raise RefusedPathError(error.message) from None
    if scheme == "s3" and uri.count("/") < 3:
        raise RefusedPathError("a bucket, not an object in it")
    return uri if scheme == "s3" else Path(posixpath.normpath(unquote(uri.removeprefix("file://")))).as_uri()


@dataclass(frozen=True)
class _ManifestRow:
    """One row: its number (the header is none), or why it cannot be used: ``reason`` is that of a reject."""

    number: int
    path: str = ""
    labels: Sequence[str | None] | None = None
    reason: str = ""
    detail: str = ""


def _rows_of(file: BinaryIO, suffix: str, uri: str) -> Iterator[_ManifestRow]:
    """The rows of *file*. Raises InputError, naming its *uri*, when it is no such table at all."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        if suffix in ("csv", "tsv"):
            yield from _table_rows(text, "\t" if suffix == "tsv" else ",", uri)
        else:
            yield from _json_rows(text)
    except UnicodeDecodeError:
        raise InputError(f"{uri} is not UTF-8 text", "convert it") from None


def _table_rows(text: io.TextIOWrapper, delimiter: str, uri: str) -> Iterator[_ManifestRow]:
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header = [name.strip().lower() for name in next(_parsed(reader, uri), [])]
    path_column, label_column = _find_column(header, _PATHS), _find_column(header, _LABELS)
    if path_column is None:
        raise InputError(
            f"{uri}: no column of paths (columns: {', '.join(header)[:200]})",
            f"the first line must name one of: {', '.join(_PATHS)}; and for labels: {', '.join(_LABELS)}",
        )
    number = 0
    for cells in _parsed(reader, uri):
        if not cells:
            continue
        number += 1
        if len(cells) > len(header):
            yield _ManifestRow(number, reason="row-damaged", detail=f"{len(cells)} cells, {len(header)} columns")
        else:
            row = [*cells, *[""] * (len(header) - len(cells))]
            yield _table_row(number, row[path_column], None if label_column is None else row[label_column])


class _CsvReader(Protocol):
    """What ``csv.reader`` gives."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...


def _parsed(reader: _CsvReader, uri: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        message = f"{uri} is not a table: line {reader.line_num}: {error}"
        raise InputError(message, "look for a quote that is not closed") from None


def _find_column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _table_row(number: int, path: str, cell: str | None) -> _ManifestRow:
    if not path.strip():
        return _ManifestRow(number, reason="path-missing")
    try:
        return _ManifestRow(number, path, None if cell is None else parse_label_cell(cell))
    except DamagedLabelError as error:
        return _ManifestRow(number, reason="label-damaged", detail=str(error))


def _json_rows(text: io.TextIOWrapper) -> Iterator[_ManifestRow]:
    number = 0
    while line := text.readline(_LONGEST_LINE):
        if not line.strip():
            continue
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            while line and not line.endswith("\n"):
                line = text.readline(_LONGEST_LINE)
            yield _ManifestRow(number, reason="row-damaged", detail="a line of this length")
        else:
            yield _json_row(number, line)


def _json_row(number: int, line: str) -> _ManifestRow:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return _ManifestRow(number, reason="row-damaged", detail="not JSON")
    if not isinstance(fields, dict):
        return _ManifestRow(number, reason="row-damaged", detail="not an object")
    path = next((fields[name] for name in _PATHS if name in fields), None)
    if not isinstance(path, str) or not path.strip():
        return _ManifestRow(number, reason="path-missing")
    try:
        return _ManifestRow(
            number, path, parse_labels(next((fields[name] for name in _LABELS if name in fields), None))
        )
    except DamagedLabelError as error:
        return _ManifestRow(number, reason="label-damaged", detail=str(error))


def _matches(location: SourceLocation) -> bool:
    return bool(location.key) and suffix_of(location.key) in _SUFFIXES


MANIFEST = SourceKind("manifest", _matches, ManifestSource)
