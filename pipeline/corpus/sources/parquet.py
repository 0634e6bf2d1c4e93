"""Parquet in the layout of image sets on dataset hubs: ``image: struct<bytes, path>`` (or binary) and ``label``.

Class names come from the ``huggingface`` entry of the schema's metadata, from string labels, or are the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import InputError
from pipeline.base.store import ObjectInfo, Store
from pipeline.base.store.reading import open_object
from pipeline.records.corpus import LISTING_SCHEMA, Corpus, Reject

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
_MAX_CLASSES = 1_000_000  # of labels without names: a larger number is a mistake, and would make as many classes
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")


class ParquetReader:
    """Reads image bytes from the row groups that hold the wanted rows, one row group at a time."""

    def __init__(self, store: Store, image_column: str) -> None:
        self._store, self._column = store, image_column

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        found: dict[int, bytes | OSError | None] = {}
        files = entries.column("file").to_pylist()
        rows = entries.column("row").to_pylist()
        for file in sorted(set(files)):
            wanted = {rows[at]: at for at in range(len(rows)) if files[at] == file}
            try:
                found.update(self._read_file(file, wanted))
            except (OSError, pa.ArrowException) as error:  # a missing or damaged file costs its own rows
                found |= {at: OSError(f"{file}: {type(error).__name__}") for at in wanted.values() if at not in found}
        return _Found(found[at] for at in range(len(rows)))

    def _read_file(self, file: str, wanted: dict[int, int]) -> Iterator[tuple[int, bytes | None]]:
        with open_object(self._store, file) as source:
            parquet = pq.ParquetFile(source)
            start = 0
            for group in range(parquet.num_row_groups):
                stop = start + parquet.metadata.row_group(group).num_rows
                inside = sorted(row for row in wanted if start <= row < stop)
                if inside:
                    column = parquet.read_row_group(group, columns=[self._column]).column(0)
                    for row, value in zip(inside, column.take([row - start for row in inside]), strict=True):
                        yield wanted[row], _bytes_of(value.as_py())
                start = stop


class _Found(Iterator[bytes | None]):
    """Gives what was found, and goes on after the error of one row."""

    def __init__(self, found: Iterator[bytes | OSError | None]) -> None:
        self._found = found

    def __next__(self) -> bytes | None:
        value = next(self._found)
        if isinstance(value, OSError):
            raise value
        return value


def _bytes_of(value: Any) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value


def list_parquet(store: Store, files: list[ObjectInfo]) -> Corpus:
    """The corpus of the parquet *files*. Their schemas must agree in the image and label columns."""
    tables: list[pa.Table] = []
    names: list[tuple[str, ...]] = []
    image_column, label_column = "", None
    for position, info in enumerate(files):
        with _named_when_damaged(store, info.key):
            parquet = pq.ParquetFile(open_object(store, info.key))
            columns = _columns(parquet.schema_arrow, info.key)
            if position and columns != (image_column, label_column):
                raise InputError(f"{info.key}: columns {columns} differ from those of {files[0].key}")
            image_column, label_column = columns
            names.append(_declared_names(parquet.schema_arrow, label_column, info.key))
            tables.append(_list_file(parquet, info.key, image_column, label_column))
    if any(found != names[0] for found in names):
        raise InputError("the parquet files declare different class names", "shard them as separate corpora")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise InputError(
            f"the parquet files hold labels {label_column!r} of different types", "shard them as separate corpora"
        ) from None
    return _label(table, names[0], ParquetReader(store, image_column))


@contextmanager
def _named_when_damaged(store: Store, key: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{store.uri}/{key} is not a parquet file: {str(error).splitlines()[0]}") from None


def _columns(schema: pa.Schema, key: str) -> tuple[str, str | None]:
    images = [name for name in _IMAGE_COLUMNS if name in schema.names and _holds_images(schema.field(name).type)]
    images += [field.name for field in schema if _holds_images(field.type)]
    if not images:
        raise InputError(f"{key}: no image column", "expected 'image' as struct<bytes, path> or binary")
    return images[0], next((name for name in _LABEL_COLUMNS if name in schema.names), None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _declared_names(schema: pa.Schema, label_column: str | None, key: str) -> tuple[str, ...]:
    text = (schema.metadata or {}).get(b"huggingface")
    if not text or label_column is None:
        return ()
    try:
        found = json.loads(text)
    except ValueError:
        raise InputError(f"{key}: its metadata 'huggingface' is not JSON", "mend or remove it") from None
    for name in ("info", "features", label_column):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, dict):
        found = found.get("feature", found)  # of a list of labels: {"feature": {"names": ...}}
    elif isinstance(found, list) and found:
        found = found[0]  # the same, as older releases wrote it
    return tuple(found.get("names") or ()) if isinstance(found, dict) else ()


def _list_file(parquet: pq.ParquetFile, key: str, image_column: str, label_column: str | None) -> pa.Table:
    """(origin, file, row, num_bytes, label as found). Sizes are the row group's mean: reading them would read all."""
    num_rows = parquet.metadata.num_rows
    sizes: list[int] = []
    for group in range(parquet.num_row_groups):
        facts = parquet.metadata.row_group(group)
        chunks = (facts.column(index) for index in range(facts.num_columns))
        total = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == image_column)
        sizes += [total // max(1, facts.num_rows)] * facts.num_rows
    label = pa.nulls(num_rows)
    if label_column is not None:
        label = parquet.read(columns=[label_column]).column(0).combine_chunks()
    origins = [f"{key}#{row}" for row in range(num_rows)]
    columns = {"origin": origins, "file": [key] * num_rows, "row": range(num_rows), "num_bytes": sizes}
    return pa.table({**columns, "found": label})


def _label(table: pa.Table, declared: tuple[str, ...], reader: ParquetReader) -> Corpus:
    rejects: list[Reject] = []
    found = table.column("found").to_pylist()
    has_labels = any(value is not None for value in found)
    class_names = declared or _names_from(found)
    number = {name: index for index, name in enumerate(class_names)}
    labels: list[list[int]] = []
    kept: list[int] = []
    for row, value in enumerate(found):
        values = value if isinstance(value, list) else [value]
        numbers = [number.get(item, -1) if isinstance(item, str) else item for item in values]
        numbers = [int(item) if isinstance(item, bool) else item for item in numbers]
        reason = _refusal(numbers, len(class_names)) if has_labels else None
        if reason:
            rejects.append(Reject(table.column("origin")[row].as_py(), reason, repr(value)[:100]))
        else:
            kept.append(row)
            labels.append(numbers if has_labels else [])
    chosen = table.drop_columns(["found"]).take(pa.array(kept, pa.int64()))
    listing = chosen.append_column("labels", pa.array(labels, pa.list_(pa.int32()))).cast(LISTING_SCHEMA)
    return Corpus(listing, class_names, reader, tuple(rejects))


def _names_from(found: list[Any]) -> tuple[str, ...]:
    flat = [item for value in found for item in (value if isinstance(value, list) else [value])]
    if any(isinstance(item, str) for item in flat):
        return tuple(sorted({item for item in flat if isinstance(item, str)}))
    whole = [item for item in flat if isinstance(item, int) and 0 <= item < _MAX_CLASSES]
    return tuple(str(index) for index in range(max(whole) + 1)) if whole else ()


def _refusal(numbers: list[Any], num_classes: int) -> str | None:
    if not numbers or any(number is None for number in numbers):
        return "label-missing"
    if any(not isinstance(number, int) or not 0 <= number < num_classes for number in numbers):
        return "label-out-of-range"
    return None
