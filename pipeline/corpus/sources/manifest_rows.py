"""The rows of a CSV, TSV or JSON-lines file, one at a time: the place of the image and its labels as found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pipeline.base.errors import InputError
from pipeline.corpus.sources.texts import DamagedLabelError, texts_in_cell, texts_of

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
