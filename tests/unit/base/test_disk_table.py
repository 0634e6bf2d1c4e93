"""Rows that may be more than memory: read again in chunks, sorted on disk, and gone with their last holder."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base import disk_table as rows_module
from pipeline.base.disk_table import DiskTable, DiskTableWriter, ExternalSorter

SCHEMA = pa.schema([("name", pa.string()), ("values", pa.list_(pa.int32()))])


def table_of(names: list[str]) -> pa.Table:
    return pa.table({"name": names, "values": [[at] for at in range(len(names))]}, schema=SCHEMA)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), max_size=12))
def test_rows_come_back_in_order_any_number_of_times(sizes: list[int]) -> None:
    writer = DiskTableWriter(SCHEMA)
    wanted: list[str] = []
    for number, size in enumerate(sizes):
        names = [f"{number}-{at}" for at in range(size)]
        writer.add(table_of(names))
        wanted += names
    rows = writer.close()
    assert rows.num_rows == len(wanted)
    for _ in range(2):
        assert [name for table in rows.chunks() for name in table["name"].to_pylist()] == wanted
    assert rows.table().schema == SCHEMA


def test_chunks_are_bounded() -> None:
    writer = DiskTableWriter(SCHEMA)
    names = [str(at) for at in range(2 * rows_module.CHUNK_ROWS + 5)]
    writer.add(table_of(names))
    for rows in (writer.close(), DiskTable.of(table_of(names))):
        assert [table.num_rows for table in rows.chunks()] == [rows_module.CHUNK_ROWS] * 2 + [5]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text("abc", max_size=3)), max_size=80),
    st.sampled_from([1, 70_000, 10_000_000]),
    st.integers(1, 9),
)
def test_a_spool_sorts_by_key_and_then_by_name(entries: list[tuple[int, str]], expected: int, step: int) -> None:
    spool = ExternalSorter(SCHEMA, expected, tie="name")
    for start in range(0, len(entries), step):
        part = entries[start : start + step]
        keys = np.array([key for key, _ in part], dtype=np.uint64)
        spool.add(table_of([name for _, name in part]), keys)
    found = [name for table in spool.in_order() for name in table["name"].to_pylist()]
    assert found == [name for _, name in sorted(entries)]


def test_a_spool_writes_to_disk_what_it_may_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_BUFFERED_BYTES", 2_000)
    spool = ExternalSorter(SCHEMA, 1_000_000, tie="name")
    generator = np.random.default_rng(0)
    wanted = []
    for start in range(0, 3_000, 300):
        names = [f"{at:05d}" for at in range(start, start + 300)]
        keys = generator.integers(0, 2**64, 300, dtype=np.uint64)
        wanted += list(zip(keys.tolist(), names, strict=True))
        spool.add(table_of(names), keys)
    found = [name for table in spool.in_order() for name in table["name"].to_pylist()]
    assert found == [name for _, name in sorted(wanted)]


def test_far_more_rows_than_expected_are_sorted_in_few_files_and_small_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rows_module, "_BUFFERED_BYTES", 20_000)
    monkeypatch.setattr(rows_module, "_MOST_ROWS_AT_ONCE", 50)
    monkeypatch.setattr(rows_module, "_MAX_BUCKETS", 8)
    spool = ExternalSorter(SCHEMA, 1, tie="name")
    generator = np.random.default_rng(0)
    keys = np.concatenate([generator.integers(0, 2**64, 6_000, dtype=np.uint64), np.full(100, 7, np.uint64)])
    names = [f"{at:05d}" for at in generator.permutation(len(keys))]
    for start in range(0, len(keys), 1_000):
        spool.add(table_of(names[start : start + 1_000]), keys[start : start + 1_000])
    tables, most_files = [], 0
    for table in spool.in_order():
        tables.append(table["name"].to_pylist())
        most_files = max(most_files, sum(path.is_file() for path in tmp_path.rglob("*")))
    assert [name for table in tables for name in table] == [name for _, name in sorted(zip(keys, names, strict=True))]
    assert max(map(len, tables)) < 50 + 100, "equal keys stay together, the others do not"
    assert most_files <= 1 + 22 * 8, "a file for each bucket of the levels that are open"


def test_the_files_go_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    writer = DiskTableWriter(SCHEMA)
    writer.add(table_of(["a"]))
    rows = writer.close()
    del writer
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    assert rows.table()["name"].to_pylist() == ["a"]
    del rows
    gc.collect()
    assert list(tmp_path.iterdir()) == []
