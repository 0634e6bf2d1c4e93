"""Which objects a stager that goes on takes for copied: what is noted, not taken back, and there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.store import Store, open_store
from pipeline.corpus.staging import journal as journal_module
from pipeline.corpus.staging.journal import StageJournal, pending_entries
from pipeline.corpus.staging.manifest import DATA, JOURNAL, CopiedObject, CopyEntry

A, B = "etag a", "etag b"


def copied(key: str, etag: str) -> CopiedObject:
    """A row of the journal, for an object of three bytes."""
    return CopiedObject(key, 3, etag, f"sha256 of {key} {etag}", "none")


@pytest.fixture
def target(tmp_path: Path) -> Store:
    """Five objects, all noted in state A."""
    store = open_store(str(tmp_path))
    journal = StageJournal(store)
    for key in "abcde":
        store.put(f"{DATA}{key}", b"123")
        journal.add(copied(key, A))
    journal.flush()
    return store


def ask(target: Store, **etags: str) -> dict[str, str]:
    """By key: the state that is believed to be copied, or "" when the object has to be copied."""
    entries = (CopyEntry(key, 3, etags.get(key, A)) for key in "abcde")
    return {item.key: item.etag if isinstance(item, CopiedObject) else "" for item in pending_entries(entries, target)}


def test_what_is_noted_is_not_copied_again_and_notes_nothing(target: Store) -> None:
    before = list(target.list(JOURNAL))
    assert ask(target) == dict.fromkeys("abcde", A)
    assert list(target.list(JOURNAL)) == before


@pytest.mark.parametrize("ahead", [1, 2, 1_000])
def test_a_note_is_taken_back_before_the_object_is_given_to_be_copied(
    target: Store, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    monkeypatch.setattr(journal_module, "_AHEAD", ahead)
    for item in pending_entries((CopyEntry(key, 3, B if key == "c" else A) for key in "abcde"), target):
        if isinstance(item, CopyEntry):
            break  # killed, with other bytes put and not noted
    assert ask(target) == dict.fromkeys("abde", A) | {"c": ""}
    noted = StageJournal(target)
    noted.add(copied("c", B))
    noted.flush()
    assert ask(target, c=B)["c"] == B


def test_an_object_that_is_gone_is_copied(target: Store) -> None:
    target.delete(f"{DATA}b")
    target.put(f"{DATA}d", b"1234")
    assert ask(target) == dict.fromkeys("ace", A) | {"b": "", "d": ""}
