"""Journals: rows come back in their order, and a failed flush loses none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import FailedError
from pipeline.base.journal import Journal, read_journal
from pipeline.base.store.local import LocalStore


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    journal = Journal(store, "metrics/0001")
    rows = [{"step": step, "note": "line\nbreak \u2028 é"} for step in range(25)]
    for step, row in enumerate(rows):
        journal.append(row)
        if step % 2:
            journal.flush()
    journal.flush()
    journal.flush()
    assert list(read_journal(store, "metrics/0001")) == rows
    assert len(list(store.list("metrics/"))) == 13


def test_part_names_keep_their_order_for_a_long_run(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    journal = Journal(store, "metrics")
    journal._parts = 99_999
    for step in range(2):
        journal.append({"step": step})
        journal.flush()
    assert [row["step"] for row in read_journal(store, "metrics")] == [0, 1]


def test_nothing_is_written_without_rows(tmp_path: Path) -> None:
    Journal(LocalStore(tmp_path), "metrics").flush()
    assert list(tmp_path.iterdir()) == []


def test_a_neighbouring_journal_is_not_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for name in ("metrics/1", "metrics/10"):
        journal = Journal(store, name)
        journal.append({"name": name})
        journal.flush()
    assert list(read_journal(store, "metrics/1")) == [{"name": "metrics/1"}]


def test_a_failed_flush_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    journal = Journal(store, "metrics")
    journal.append({"step": 0})

    def full(key: str, data: bytes) -> None:
        raise FailedError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", full)
        with pytest.raises(FailedError):
            journal.flush()
    journal.append({"step": 1})
    journal.flush()
    assert [row["step"] for row in read_journal(store, "metrics")] == [0, 1]


def test_what_is_no_json_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        Journal(LocalStore(tmp_path), "metrics").append({"loss": float("nan")})
