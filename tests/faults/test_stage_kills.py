"""Stagers that are killed, doubled, or whose copy is damaged afterwards: the same command makes it whole."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.base.errors import DamageError, MismatchError
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.corpus.staging.journal import StageJournal
from pipeline.corpus.staging.manifest import DATA
from pipeline.corpus.staging.verify import verify_staged
from tests.support.staging import (
    BIG,
    QUICK,
    assert_nothing_left,
    content_of,
    digests_of,
    make_corpus,
    manifest_bytes,
    new_bucket,
    put_corpus,
    stage_quietly,
    start_stager,
)

CORPUS = make_corpus(11, num_small=60)
POINTS = ("stage.before-journal", "stage.after-object", "stage.before-table", "stage.before-manifest")
WAIT_SECONDS = 60


@pytest.fixture
def source(tmp_path: Path) -> str:
    """The corpus in a folder."""
    return put_corpus(str(tmp_path / "source"), CORPUS)


@pytest.fixture
def calm(source: str, tmp_path: Path) -> dict[str, bytes]:
    """The manifest of an undisturbed stage."""
    stage_quietly(source, tmp_path / "calm")
    return manifest_bytes(tmp_path / "calm")


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_step_and_run_again(source: str, calm: dict[str, bytes], tmp_path: Path, point: str) -> None:
    target = tmp_path / "copy"
    stager = start_stager(source, str(target), fail_at=point)
    assert stager.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert not (target / "manifest.json").exists()
    stage_quietly(source, target)
    assert manifest_bytes(target) == calm
    assert content_of(target) == digests_of(CORPUS)
    assert_nothing_left(target)


def killed_after(source: str, target: str, num_objects: int) -> None:
    """A stager that is killed as soon as about *num_objects* objects are there."""
    stager, store = start_stager(source, target, parallel=1), open_store(target)
    deadline = time.monotonic() + WAIT_SECONDS
    while sum(1 for _ in store.list(DATA)) < num_objects:
        assert time.monotonic() < deadline
        if stager.poll() is not None:  # it was faster
            return
    os.kill(stager.pid, signal.SIGKILL)
    stager.wait(WAIT_SECONDS)


def kill_again_and_again(source: str, target: str, seed: int, num_kills: int) -> None:
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(num_kills):
        killed_after(source, target, draw.randrange(1, len(CORPUS)))
    stage_quietly(source, target)


@pytest.mark.parametrize("num_kills", [2, pytest.param(25, marks=pytest.mark.long)])
def test_killed_at_random_moments(source: str, calm: dict[str, bytes], tmp_path: Path, num_kills: int) -> None:
    seed = random.SystemRandom().randrange(10**6)
    kill_again_and_again(source, str(tmp_path / "copy"), seed, num_kills)
    assert manifest_bytes(tmp_path / "copy") == calm
    assert content_of(tmp_path / "copy") == digests_of(CORPUS)
    assert_nothing_left(tmp_path / "copy")


@pytest.mark.parametrize("num_kills", [1, pytest.param(10, marks=pytest.mark.long)])
def test_killed_between_two_buckets(s3_workspace: str, num_kills: int) -> None:
    seed = random.SystemRandom().randrange(10**6)
    source = put_corpus(s3_workspace, CORPUS)
    other = new_bucket(f"target-{uuid.uuid4().hex[:8]}")
    stage_quietly(source, f"{other}/calm")
    half = open_store(f"{other}/copy").multipart(f"{DATA}{BIG}", 5 << 20)
    half.put_part(0, b"what a killed stager left")
    kill_again_and_again(source, f"{other}/copy", seed, num_kills)
    assert manifest_bytes(f"{other}/copy") == manifest_bytes(f"{other}/calm")
    assert content_of(f"{other}/copy") == digests_of(CORPUS)
    assert_nothing_left(f"{other}/copy")


def test_two_stagers_at_once(source: str, calm: dict[str, bytes], tmp_path: Path) -> None:
    barrier = threading.Barrier(3)

    def run(_: int) -> str:
        barrier.wait(WAIT_SECONDS)
        return stage_quietly(source, tmp_path / "copy").stage.manifest.digest

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(run, range(3)))) == 1
    assert manifest_bytes(tmp_path / "copy") == calm
    assert content_of(tmp_path / "copy") == digests_of(CORPUS)
    assert_nothing_left(tmp_path / "copy")


def test_the_same_again_does_nothing(source: str, calm: dict[str, bytes], tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "calm").rglob("*")}
    again = stage_quietly(source, tmp_path / "calm")
    assert again.stage.outcome == "present"
    assert "nothing to do" in again.as_text()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "calm").rglob("*")} == before


@pytest.mark.parametrize("is_finished", [True, False])
def test_another_corpus_of_that_name_is_refused(source: str, tmp_path: Path, is_finished: bool) -> None:
    if is_finished:
        stage_quietly(source, tmp_path / "copy")
    else:
        assert start_stager(source, str(tmp_path / "copy"), fail_at=POINTS[2]).wait(WAIT_SECONDS) == -signal.SIGKILL
    for recipe, start, field in (
        (QUICK.model_copy(update={"include": ("*.jpg",)}), source, "include"),
        (QUICK.model_copy(update={"exclude": ("*.tar",)}), source, "exclude"),
        (QUICK, f"{source}/class 1", "source"),
    ):
        with pytest.raises(MismatchError, match=field) as caught:
            stage_quietly(start, tmp_path / "copy", recipe=recipe)
        assert caught.value.exit_code == 2


def drop(store: Store, key: str) -> None:
    store.delete(key)


def cut(store: Store, key: str) -> None:
    store.put(key, store.read(key)[:-1])


def flip(store: Store, key: str) -> None:
    data = bytearray(store.read(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


@pytest.mark.parametrize("damage", [drop, cut, flip])
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_damage_is_named_and_only_that_is_repaired(
    request: pytest.FixtureRequest,
    source: str,
    tmp_path: Path,
    damage: Callable[[Store, str], None],
    kind: str,
) -> None:
    target = request.getfixturevalue("s3_workspace") if kind == "s3" else str(tmp_path / "copy")
    stage_quietly(source, target)
    before, store = manifest_bytes(target), open_store(target)
    assert verify_staged(store, "digests", Silent()) == []
    hurt = [f"{DATA}class 1/é+013.jpg", f"{DATA}{BIG}"]
    for key in hurt:
        damage(store, key)
    etags = {info.key: info.etag for info in store.list(DATA)}
    problems = verify_staged(store, "digests", Silent())
    assert [problem.partition(":")[0] for problem in problems] == hurt
    assert len(verify_staged(store, "sizes", Silent())) == (0 if damage is flip else 2)
    repaired = stage_quietly(source, target, check="digests")
    assert repaired.stage.outcome == "repaired"
    assert verify_staged(store, "digests", Silent()) == []
    assert manifest_bytes(target) == before
    assert content_of(target) == digests_of(CORPUS)
    after = {info.key: info.etag for info in store.list(DATA)}
    assert {key for key in after if after[key] != etags.get(key)} == set(hurt)


def test_a_source_that_changed_repairs_nothing(source: str, tmp_path: Path) -> None:
    key = "class 1/é+013.jpg"
    stage_quietly(source, tmp_path / "copy")
    (tmp_path / "copy" / DATA / key).unlink()
    put_corpus(source, {key: b"other"})
    with pytest.raises(DamageError, match="source-changed"):
        stage_quietly(source, tmp_path / "copy")
    assert not (tmp_path / "copy" / DATA / key).exists()


def test_strangers_and_damaged_tables_are_named(source: str, tmp_path: Path) -> None:
    stage_quietly(source, tmp_path / "copy")
    store = open_store(str(tmp_path / "copy"))
    store.put(f"{DATA}stranger", b"x")
    assert verify_staged(store, "sizes", Silent()) == [f"{DATA}stranger: the manifest does not name it"]
    store.put("manifest.parquet", b"x")
    assert verify_staged(store, "sizes", Silent()) == [
        "manifest.parquet: its bytes are not those that manifest.json names"
    ]
    with pytest.raises(DamageError, match=r"manifest\.parquet"):
        stage_quietly(source, tmp_path / "copy")


def test_a_journal_is_not_believed_when_the_object_is_gone(source: str, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    assert start_stager(source, str(target), fail_at=POINTS[2]).wait(WAIT_SECONDS) == -signal.SIGKILL
    assert list(target.glob(".staging-*"))
    (target / DATA / BIG).unlink()
    stage_quietly(source, target)
    assert content_of(target) == digests_of(CORPUS)


def test_a_journal_is_not_believed_when_the_source_is_again_what_it_was(
    source: str, calm: dict[str, bytes], tmp_path: Path
) -> None:
    """Noted as A; killed between the put of B, of the same size, and its note; then the source is A again."""
    target, key = tmp_path / "copy", "class 1/é+013.jpg"
    assert start_stager(source, str(target), fail_at=POINTS[2]).wait(WAIT_SECONDS) == -signal.SIGKILL
    original, kept = Path(source) / key, tmp_path / "kept"
    original.rename(kept)
    put_corpus(source, {key: bytes(reversed(CORPUS[key]))})
    assert start_stager(source, str(target), fail_at=POINTS[0]).wait(WAIT_SECONDS) == -signal.SIGKILL
    assert content_of(target)[key] != digests_of(CORPUS)[key]
    kept.replace(original)
    stage_quietly(source, target)
    assert content_of(target) == digests_of(CORPUS)
    assert manifest_bytes(target) == calm
    assert_nothing_left(target)


def test_every_object_is_in_the_journal_when_the_tables_are_written(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    add = StageJournal.add
    monkeypatch.setattr(StageJournal, "add", lambda self, copied: (seen.append(copied.key), add(self, copied)))
    target = str(tmp_path / "copy")
    assert start_stager(source, target, fail_at=POINTS[2]).wait(WAIT_SECONDS) == -signal.SIGKILL
    stage_quietly(source, target)
    assert seen == []
