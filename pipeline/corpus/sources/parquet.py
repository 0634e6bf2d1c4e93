"""Parquet in the layout of image sets on dataset hubs: ``image: struct<bytes, path>`` (or binary) and ``label``.

Class names come from the ``huggingface`` entry of the schema's metadata, from string labels, or are the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import InputError
from pipeline.base.store import ObjectInfo, Store
from pipeline.corpus.sources.parquet_columns import ParquetColumns, columns_of, label_texts
from pipeline.corpus.sources.parquet_reader import ParquetReader, column_bytes, open_parquet
from pipeline.corpus.sources.place import Place
from pipeline.corpus.sources.source import CHUNK, Found, LabelsAre, SourceKind, is_text
from pipeline.records.corpus import FOUND_SCHEMA, ClassEntry, Reject


class ParquetSource:
    """See the top of this file. What the files have in common is read from the first one when it is opened."""

    kind = "parquet"
    random_access = False
    may_repeat = False

    def __init__(self, place: Place) -> None:
        self._place = place
        first = next((info for info in place.objects("parquet") if is_text(info.key)), None)
        if first is None:
            raise InputError(f"no parquet file in {place.uri}")
        self._first = first.key
        with _open(place.store, first) as parquet:
            self._columns = columns_of(parquet.schema_arrow, first.key)
        self.reader = ParquetReader(place.store, self._columns.image)

    @property
    def declared(self) -> Sequence[ClassEntry]:
        """See Source."""
        return [ClassEntry(name=name) for name in self._columns.names]

    @property
    def labels_are(self) -> LabelsAre:
        """See Source."""
        return "names" if self._columns.label_kind == "text" else "numbers"

    def chunks(self) -> Iterator[Found]:
        """See Source. Raises InputError for a file that is none, or whose columns differ from those of the first."""
        for info in self._place.objects("parquet"):
            if not is_text(info.key):
                yield Found(FOUND_SCHEMA.empty_table(), [Reject(ascii(info.key), "name-not-unicode", "a table")])
                continue
            with _open(self._place.store, info) as parquet:
                columns = columns_of(parquet.schema_arrow, info.key)
                self._columns = self._columns.joined(columns, self._first, info.key)
                yield from _rows(parquet, info, columns)


def _rows(parquet: pq.ParquetFile, info: ObjectInfo, columns: ParquetColumns) -> Iterator[Found]:
    """The rows of one file. Sizes are the row group's mean: to know them, all would have to be read."""
    row = 0
    for group in range(parquet.num_row_groups):
        facts = parquet.metadata.row_group(group)
        size = column_bytes(facts, columns.image) // max(1, facts.num_rows)
        for labels in _labels(parquet, group, facts.num_rows, columns.label):
            yield Found(_table(info, row, size, labels), [])
            row += len(labels)


def _labels(parquet: pq.ParquetFile, group: int, num_rows: int, column: str | None) -> Iterator[pa.Array]:
    if column is None:
        for start in range(0, num_rows, CHUNK):
            yield pa.nulls(min(CHUNK, num_rows - start), FOUND_SCHEMA.field("labels").type)
        return
    for batch in parquet.iter_batches(CHUNK, row_groups=[group], columns=[column], use_threads=False):
        yield label_texts(batch.column(0))


def _table(info: ObjectInfo, first: int, size: int, labels: pa.Array) -> pa.Table:
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
    return pa.table(columns, schema=FOUND_SCHEMA)


@contextmanager
def _open(store: Store, info: ObjectInfo) -> Iterator[pq.ParquetFile]:
    """The file of *info*; what is wrong with it while it is read is an InputError that names it."""
    try:
        with open_parquet(store, info.key, info.etag) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{store.uri}/{info.key} is not a parquet file: {str(error).splitlines()[0]}") from None


def _matches(place: Place) -> bool:
    return place.count("parquet") > 0


PARQUET = SourceKind("parquet", _matches, ParquetSource)
