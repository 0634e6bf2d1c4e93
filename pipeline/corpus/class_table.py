"""Class tables from files; labels.py makes them from what sources declare.

A file is one of: ``.txt`` with one name a line; ``.csv`` or ``.tsv`` with columns ``name`` and, if wanted, ``synset``
and ``parent``; ``.json`` or ``.yaml`` with a list of names, or of objects with these fields.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.base.config import parse_yaml
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store.open import normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import Stores
from pipeline.records.corpus import ClassEntry

MAX_CLASSES = 1_000_000
_LARGEST_FILE = 200_000_000  # bytes
_FIELDS = ("name", "synset", "parent")
_WAY_OUT = "give a list of names, or a table with columns name, synset, parent"


def load_classes(uri: str, stores: Stores | None = None) -> tuple[ClassEntry, ...]:
    """The class table in the file at *uri*, checked. Raises InputError, naming what is wrong with it."""
    parent, name = split_uri(normalise_uri(uri))
    store = open_store(parent, stores)
    info = store.head(name)
    if info is None:
        raise InputError(f"no class table {uri}", "name a file")
    if info.num_bytes > _LARGEST_FILE:
        raise InputError(f"{name}: {info.num_bytes} bytes are no class table")
    try:
        text = store.read(name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8 text", "convert it") from None
    suffix = name.rpartition(".")[2].lower()
    if suffix not in _PARSERS:
        raise InputError(f"{name}: class tables are {', '.join('.' + known for known in _PARSERS)} files")
    entries = tuple(_entry(value, number, name) for number, value in enumerate(_PARSERS[suffix](text, name)))
    check_classes(entries, name)
    return entries


def check_classes(entries: Sequence[ClassEntry], source: str) -> None:
    """Raise InputError, naming *source*, unless each name and synset means one class and parents make no circle."""
    if not entries:
        raise InputError(f"{source}: no classes in it", _WAY_OUT)
    if len(entries) > MAX_CLASSES:
        raise InputError(f"{source}: more than {MAX_CLASSES} classes")
    numbers: dict[str, int] = {}
    for number, entry in enumerate(entries):
        for text in {entry.name, entry.synset} - {""}:
            if numbers.setdefault(text, number) != number:
                raise InputError(f"{source}: {text!r} stands for class {numbers[text]} and for class {number}")
    parents = {entry.name: entry.parent for entry in entries}
    checked: set[str] = set()
    for entry in entries:
        path: dict[str, None] = {}
        name = entry.name
        while name in parents and name not in checked:
            if name in path:
                raise InputError(f"{source}: class {name!r} lies above itself")
            path[name] = None
            name = parents[name]
        checked.update(path)


def _lines(text: str, source: str) -> list[Any]:
    names = [line.strip() for line in text.rstrip().splitlines()]
    if "" in names:
        raise InputError(f"{source}: line {names.index('') + 1} is empty", "every line is a class, and counts")
    return list(names)


def _table(delimiter: str) -> Any:
    def parse(text: str, source: str) -> list[Any]:
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
        except csv.Error as error:
            raise InputError(f"{source} is not a table: {error}") from None
        header = [name.strip().lower() for name in rows[0]] if rows else []
        if "name" not in header:
            raise InputError(f"{source}: no column 'name' (columns: {', '.join(header)[:200]})", _WAY_OUT)
        used = [(name, header.index(name)) for name in _FIELDS if name in header]
        return [{name: row[column].strip() if column < len(row) else "" for name, column in used} for row in rows[1:]]

    return parse


def _json(text: str, source: str) -> list[Any]:
    try:
        return _as_list(json.loads(text), source)
    except (ValueError, RecursionError):
        raise InputError(f"{source} is not JSON") from None


def _yaml(text: str, source: str) -> list[Any]:
    body = "\n".join(f" {line}" for line in text.splitlines() if line.rstrip() != "---")
    try:
        return _as_list(parse_yaml(f"classes:\n{body}\n", source)["classes"], source)
    except RecipeError as error:
        raise InputError(str(error).splitlines()[0]) from None


def _as_list(value: Any, source: str) -> list[Any]:
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))  # {"classes": [...]}
    if not isinstance(value, list):
        raise InputError(f"{source}: not a list of classes", _WAY_OUT)
    return value


_PARSERS = {"txt": _lines, "csv": _table(","), "tsv": _table("\t"), "json": _json, "yaml": _yaml, "yml": _yaml}


def _entry(value: Any, number: int, source: str) -> ClassEntry:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    fields = {"name": value} if isinstance(value, str) else value
    try:
        entry = ClassEntry.model_validate(fields)
    except ValidationError:
        raise InputError(f"{source}: class {number} is neither a name nor name, synset, parent", "quote it") from None
    if not entry.name.strip():
        raise InputError(f"{source}: class {number} has no name")
    return entry
