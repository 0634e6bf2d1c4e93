"""Parquet in the layout of image sets on dataset hubs: ``image: struct<bytes, path>`` (or binary) and ``label``.

Class names come from the ``huggingface`` entry of the schema's metadata, from string labels, or are the numbers.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import FailedError, InputError, StoreAccessError
from pipeline.base.store.object_file import open_object
from pipeline.base.store.protocol import ObjectInfo, Store
from pipeline.corpus.sources.location import SourceLocation
from pipeline.corpus.sources.readers import ReadRange, ReadResult, WindowedReader, as_file_error
from pipeline.corpus.sources.source import MAX_CHUNK_ROWS, LabelKind, ListingChunk, SourceKind
from pipeline.corpus.sources.walk import is_unicode
from pipeline.records.corpus import SOURCE_SCHEMA, ClassEntry, Reject

# Columns by their names, the first that is there; any other column of images will do.
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
_TEXTS = pa.list_(pa.string())
_BUFFER_BYTES = 1 << 20  # of the file, read at once
_BATCH_BYTES = 8_000_000  # of images that are decoded together
_BATCH_ROWS = 1_024
ColumnLabels = Literal["", "number", "text"]  # "": nothing but nulls


class ParquetSource:
    """See the top of this file. What the files have in common is read from the first one when it is opened."""

    kind = "parquet"
    random_access = False
    may_repeat = False

    def __init__(self, location: SourceLocation) -> None:
        self._location = location
        first = next((info for info in location.objects("parquet") if is_unicode(info.key)), None)
        if first is None:
            raise InputError(f"no parquet file in {location.uri}")
        self._first = first.key
        with _open(location.store, first) as parquet:
            self._columns = _columns_of(parquet.schema_arrow, first.key)
        self.reader = ParquetReader(location.store, self._columns.image)

    @property
    def declared_classes(self) -> Sequence[ClassEntry]:
        """See Source."""
        return [ClassEntry(name=name) for name in self._columns.names]

    @property
    def label_kind(self) -> LabelKind:
        """See Source."""
        return "names" if self._columns.labels == "text" else "numbers"

    def chunks(self) -> Iterator[ListingChunk]:
        """See Source. Raises InputError for a file that is none, or whose columns differ from those of the first."""
        for info in self._location.objects("parquet"):
            if not is_unicode(info.key):
                reject = Reject(ascii(info.key), "name-not-unicode", "a table")
                yield ListingChunk(SOURCE_SCHEMA.empty_table(), [reject])
                continue
            with _open(self._location.store, info) as parquet:
                columns = _columns_of(parquet.schema_arrow, info.key)
                self._columns = self._columns.merge(columns, self._first, info.key)
                yield from _list_rows(parquet, info, columns)


@contextmanager
def _open(store: Store, info: ObjectInfo) -> Iterator[pq.ParquetFile]:
    """The file of *info*; what is wrong with it while it is read is an InputError that names it."""
    try:
        with _open_parquet(store, info.key, info.etag) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{store.uri}/{info.key} is not a parquet file: {str(error).splitlines()[0]}") from None


def _open_parquet(store: Store, key: str, etag: str) -> pq.ParquetFile:
    """The parquet file at *key*, pinned to *etag*, to be read page by page."""
    return pq.ParquetFile(open_object(store, key, etag), buffer_size=_BUFFER_BYTES, pre_buffer=False)


@dataclass(frozen=True)
class ParquetColumns:
    """The columns of one file, or what several have in common. ``names``: the classes that the file declares."""

    image: str
    label: str | None
    labels: ColumnLabels
    is_list: bool
    names: tuple[str, ...]

    def merge(self, file: ParquetColumns, first: str, key: str) -> ParquetColumns:
        """What *first* (these columns) and *key* (those of *file*) have in common.

        Raises InputError, naming both, when they differ.
        """
        both = f"{key} and {first}"
        if (self.image, self.label) != (file.image, file.label):
            first_columns, file_columns = (", ".join(filter(None, (at.image, at.label))) for at in (self, file))
            raise InputError(
                f"{both} have different columns: {file_columns}; {first_columns}", "shard them as separate corpora"
            )
        if self.names != file.names:
            raise InputError(f"{both} declare different class names", "shard them as separate corpora")
        if self.labels and file.labels:
            if (self.labels, self.is_list) != (file.labels, file.is_list):
                raise InputError(f"{both} hold labels of different types", "shard them as separate corpora")
            return self
        return self if self.labels else replace(file)


def _columns_of(schema: pa.Schema, key: str) -> ParquetColumns:
    """The columns of the file *key*. Raises InputError when none holds images, or labels are of no known type."""
    images = [name for name in _IMAGE_COLUMNS if name in schema.names and _holds_images(schema.field(name).type)]
    images += [field.name for field in schema if _holds_images(field.type)]
    if not images:
        raise InputError(f"{key}: no image column", "expected 'image' as struct<bytes, path> or binary")
    label = next((name for name in _LABEL_COLUMNS if name in schema.names and name != images[0]), None)
    labels, is_list = _labels_in(schema.field(label).type, key) if label is not None else ("", False)
    return ParquetColumns(images[0], label, labels, is_list, _declared_names(schema, label, key))


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return bool(index >= 0 and _is_binary(kind.field(index).type))
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _labels_in(kind: pa.DataType, key: str) -> tuple[ColumnLabels, bool]:
    """What labels a column of this type has, and whether it has lists of them."""
    if _is_list(kind):
        return _labels_in(kind.value_type, key)[0], True
    if pa.types.is_dictionary(kind):
        return _labels_in(kind.value_type, key)
    if pa.types.is_null(kind):
        return "", False
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text", False
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    ):
        return "number", False
    raise InputError(f"{key}: labels of type {kind} are not read", "expected numbers, strings, or lists of them")


def _declared_names(schema: pa.Schema, label_column: str | None, key: str) -> tuple[str, ...]:
    text = (schema.metadata or {}).get(b"huggingface")
    if not text or label_column is None:
        return ()
    try:
        feature = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{key}: its metadata 'huggingface' is not JSON", "mend or remove it") from None
    for name in ("info", "features", label_column):
        feature = feature.get(name) if isinstance(feature, dict) else None
    if isinstance(feature, dict):
        feature = feature.get("feature", feature)  # of a list of labels: {"feature": {"names": ...}}
    elif isinstance(feature, list) and feature:
        feature = feature[0]  # the same, as older releases wrote it
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _list_rows(parquet: pq.ParquetFile, info: ObjectInfo, columns: ParquetColumns) -> Iterator[ListingChunk]:
    """The rows of one file. Sizes are the row group's mean: to know them, all would have to be read."""
    row = 0
    for group in range(parquet.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        size = _column_bytes(metadata, columns.image) // max(1, metadata.num_rows)
        for labels in _labels(parquet, group, metadata.num_rows, columns.label):
            yield ListingChunk(_listing_table(info, row, size, labels), [])
            row += len(labels)


def _column_bytes(group: pq.RowGroupMetaData, column: str) -> int:
    """Bytes of *column* in a row group, as they are before compression."""
    chunks = (group.column(index) for index in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _labels(parquet: pq.ParquetFile, group: int, num_rows: int, column: str | None) -> Iterator[pa.Array]:
    if column is None:
        for start in range(0, num_rows, MAX_CHUNK_ROWS):
            yield pa.nulls(min(MAX_CHUNK_ROWS, num_rows - start), SOURCE_SCHEMA.field("labels").type)
        return
    for batch in parquet.iter_batches(MAX_CHUNK_ROWS, row_groups=[group], columns=[column], use_threads=False):
        yield _label_texts(batch.column(0))


def _label_texts(labels: pa.Array) -> pa.Array:
    """Labels of any type that ``_columns_of`` lets pass, as lists of texts."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_null(labels.type):
        return pa.nulls(len(labels), _TEXTS)
    if not _is_list(labels.type):
        present = pc.is_valid(labels).to_numpy(zero_copy_only=False).astype("int32")
        starts = pa.array([0, *present.cumsum()], pa.int32())
        lists = pa.ListArray.from_arrays(starts, _texts(labels.drop_null()))
        return pc.if_else(pc.is_valid(labels), lists, pa.scalar(None, _TEXTS))
    sizes = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False)
    starts = pa.array([0, *sizes.cumsum()], pa.int32())
    lists = pa.ListArray.from_arrays(starts, _texts(pc.list_flatten(labels)))
    return pc.if_else(pc.is_valid(labels), lists, pa.scalar(None, _TEXTS))


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    return values.cast(pa.string())


def _listing_table(info: ObjectInfo, first: int, size: int, labels: pa.Array) -> pa.Table:
    num_rows = len(labels)
    rows = pa.array(range(first, first + num_rows), pa.int64())
    columns = {
        "origin": pc.binary_join_element_wise(pa.scalar(info.key), rows.cast(pa.string()), "#"),
        "file": pa.repeat(info.key, num_rows),
        "row": rows,
        "offset": pa.repeat(-1, num_rows),
        "num_bytes": pa.repeat(size, num_rows),
        "etag": pa.repeat(info.etag, num_rows),
        "labels": labels,
    }
    return pa.table(columns, schema=SOURCE_SCHEMA)


class ParquetReader:
    """Reads the images of *column*. Rows that are close together in a file are read once; any order is right, but slow.

    It reads batch by batch, never a whole row group, which may be larger than memory. A damaged page costs the rows
    of its row group that are read and come after it.
    """

    def __init__(self, store: Store, column: str) -> None:
        self._store, self._column = store, column

    def read(self, entries: pa.Table) -> Iterator[bytes | None]:
        """See CorpusReader."""
        return WindowedReader(entries, _OpenFile(self._store, self._column).load)


class _OpenFile:
    """Leaves the file that was read last open, so that the next window goes on where the last one stopped."""

    def __init__(self, store: Store, column: str) -> None:
        self._store, self._column = store, column
        self._name = ""
        self._cursor: _RowCursor | None = None

    def load(self, file: str, rows: Sequence[ReadRange]) -> Mapping[int, ReadResult]:
        try:
            if self._cursor is None or self._name != file:
                self._cursor, self._name = self._open(file, rows[0].etag), file
        except (StoreAccessError, FailedError, OSError, pa.ArrowException) as error:
            file_error = _file_error(file, error)
            return dict.fromkeys(range(len(rows)), file_error)
        order = sorted(range(len(rows)), key=lambda index: rows[index].row)
        return {index: self._cursor.value(rows[index].row) for index in order}

    def _open(self, file: str, etag: str) -> _RowCursor:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None
        return _RowCursor(file, _open_parquet(self._store, file, etag), self._column)


class _RowCursor:
    """A position inside one file: a row group, and the batch of it that was decoded last."""

    def __init__(self, name: str, parquet: pq.ParquetFile, column: str) -> None:
        self._name, self._parquet = name, parquet
        self._is_struct = pa.types.is_struct(parquet.schema_arrow.field(column).type)
        self._columns = [f"{column}.bytes" if self._is_struct else column]
        groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
        self._starts = [0]  # first row of each row group, and behind the last
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)
        self._damaged: dict[int, OSError] = {}  # by row group
        self._group, self._first = -1, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._values: pa.Array = pa.nulls(0)

    def value(self, row: int) -> ReadResult:
        """The image of *row*, or the OSError for why it cannot be read."""
        group = bisect.bisect_right(self._starts, row) - 1
        if group in self._damaged:
            return self._damaged[group]
        try:
            if group != self._group or row < self._first:
                self._begin(group)
            while row >= self._first + len(self._values):
                self._first += len(self._values)
                self._values = next(self._batches).column(0)
        except (StoreAccessError, FailedError, OSError, pa.ArrowException, StopIteration, IndexError) as error:
            self._group = -1
            self._damaged[group] = _file_error(self._name, error)
            return self._damaged[group]
        value = self._values[row - self._first].as_py()
        return value.get("bytes") if isinstance(value, dict) else value

    def close(self) -> None:
        """Close the file."""
        self._parquet.close(force=True)

    def _begin(self, group: int) -> None:
        size = _column_bytes(self._parquet.metadata.row_group(group), self._columns[0].split(".")[0])
        num_rows = self._starts[group + 1] - self._starts[group]
        batch = max(1, min(_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, size)))
        self._batches = self._parquet.iter_batches(batch, row_groups=[group], columns=self._columns, use_threads=False)
        self._group, self._first, self._values = group, self._starts[group], pa.nulls(0)


def _file_error(file: str, error: Exception) -> OSError:
    """*error* as that of the file. Raises what is wrong with the store instead."""
    file_error = as_file_error(error, file)
    if isinstance(file_error, StoreAccessError | FailedError):
        raise file_error from None
    if isinstance(file_error, OSError) and file in str(file_error):
        return file_error
    return OSError(f"{file}: {type(error).__name__}")


def _matches(location: SourceLocation) -> bool:
    return location.count("parquet") > 0


PARQUET = SourceKind("parquet", _matches, ParquetSource, containers=("parquet",))
