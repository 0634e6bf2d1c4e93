"""A shard's index in compact form: every row as it was written, and nothing taken that is not an index."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.records.dataset import INDEX_SCHEMA, SHARDS_SCHEMA, ShardEntry
from pipeline.stream.index import ShardIndex, ShardTable, parse_index

ROWS = 300


def columns(rows: int = ROWS) -> dict[str, list[Any]]:
    """An index of *rows* samples with none, one and several labels, in two formats."""
    return {
        "key": [sha256_hex(str(at).encode())[:20] for at in range(rows)],
        "labels": [list(range(at, at + at % 4)) for at in range(rows)],
        "image_offset": [512 + at * 1024 for at in range(rows)],
        "image_bytes": list(range(rows)),
        "label_offset": [0] * rows,
        "label_bytes": [1] * rows,
        "sha256": [sha256_hex(f"data {at}".encode()) for at in range(rows)],
        "width": [1] * rows,
        "height": [1] * rows,
        "format": ["jpg" if at < 150 or at % 3 else "png" for at in range(rows)],
        "origin": [f"{at}.jpg" for at in range(rows)],
    }


def written(table: pa.Table, group: int = 100) -> bytes:
    """The table as a parquet file with row groups of *group*."""
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=group)
    return file.getvalue()


def parsed(changed: dict[str, list[Any]], num_bytes: int = 512 + ROWS * 1024, group: int = 100) -> ShardIndex:
    """What is made of an index with these columns."""
    fields = [INDEX_SCHEMA.field(name) for name in changed]
    data = written(pa.table(changed, schema=pa.schema(fields)), group)
    entry = ShardEntry(name="shard-000007.tar", num_bytes=num_bytes, sha256="", num_samples=ROWS, index_sha256="")
    return parse_index(data, entry, "datasets/d/shard-000007.parquet")


@pytest.mark.parametrize("group", [1, 7, 100, 1000])
def test_every_row_is_as_it_was_written(group: int) -> None:
    wanted = columns()
    for index in (parsed(wanted, group=group), pickle.loads(pickle.dumps(parsed(wanted)))):
        assert len(index) == ROWS
        assert index.keys() == wanted["key"]
        for row in range(ROWS):
            member = index.member(row)
            assert (member.key, member.format) == (wanted["key"][row], wanted["format"][row])
            assert (member.offset, member.num_bytes) == (wanted["image_offset"][row], wanted["image_bytes"][row])
            assert member.sha256.hex() == wanted["sha256"][row]
            assert member.labels == tuple(wanted["labels"][row])


@pytest.mark.parametrize("row", [-1, ROWS, 10**6])
def test_there_is_no_other_row(row: int) -> None:
    with pytest.raises(IndexError):
        parsed(columns()).member(row)


def test_it_is_compact() -> None:
    assert parsed(columns()).num_bytes < 100 * ROWS


def edited(name: str, row: int, value: Any) -> dict[str, list[Any]]:
    """The columns with one value changed."""
    changed = columns()
    changed[name][row] = value
    return changed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", "short"),
        ("key", "ü" * 10),
        ("key", None),
        ("sha256", "0" * 63),
        ("sha256", "x" * 64),
        ("image_offset", 511),
        ("image_offset", 10**9),
        ("image_bytes", -1),
        ("image_bytes", 10**9),
        ("labels", None),
        ("format", None),
    ],
)
@pytest.mark.parametrize("row", [0, 150, ROWS - 1])
def test_an_index_that_cannot_be_right_is_told_by_name(name: str, value: Any, row: int) -> None:
    with pytest.raises(DamageError, match=r"datasets/d/shard-000007\.parquet"):
        parsed(edited(name, row, value))


def test_an_index_of_another_shard_is_told() -> None:
    with pytest.raises(DamageError, match=r"is not the index of shard-000007\.tar"):
        parsed({name: values[:-1] for name, values in columns().items()})
    with pytest.raises(DamageError, match=r"is not the index of shard-000007\.tar"):
        parsed(columns(), num_bytes=512 + (ROWS - 1) * 1024 + ROWS - 2)


@pytest.mark.parametrize("name", ["key", "labels", "image_offset", "image_bytes", "sha256", "format"])
def test_an_index_without_a_column_is_told(name: str) -> None:
    changed = columns()
    del changed[name]
    with pytest.raises(DamageError, match="shard-000007"):
        parsed(changed)


def test_what_is_no_parquet_is_told() -> None:
    entry = ShardEntry(name="shard-000007.tar", num_bytes=1, sha256="", num_samples=1, index_sha256="")
    for data in (b"", b"PAR1", written(pa.table({"a": [1]}))[:-5]):
        with pytest.raises(DamageError, match="shard-000007"):
            parse_index(data, entry, "datasets/d/shard-000007.parquet")


def table_of(count: int) -> tuple[ShardTable, list[ShardEntry]]:
    """A table of shards, and its entries."""
    entries = [
        ShardEntry(name=f"shard-{at:06d}.tar", num_bytes=at, sha256=f"{at:064x}", num_samples=at % 7, index_sha256="0")
        for at in range(count)
    ]
    rows = [entry.model_dump() for entry in entries]
    return ShardTable(pa.Table.from_pylist(rows, schema=SHARDS_SCHEMA)), entries


def test_the_table_of_shards_is_a_sequence_of_its_entries() -> None:
    table, entries = table_of(5000)
    assert list(table) == entries
    assert len(table) == 5000
    for _ in range(2):
        assert [table[at] for at in range(5000)] == entries
    assert table[-1] == entries[-1]
    assert table[2:9:3] == entries[2:9:3]
    assert table.digests == [entry.sha256 for entry in entries]
    np.testing.assert_array_equal(table.sizes, [entry.num_samples for entry in entries])
    assert list(pickle.loads(pickle.dumps(table))) == entries
    with pytest.raises(IndexError):
        table[5000]
