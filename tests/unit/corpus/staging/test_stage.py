"""What a stage takes, refuses and estimates; its journal and its sums, without a server."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from jobs.stage import estimate, target_uri
from pipeline.base.config import build
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import InputError, MismatchError, RecipeError, TooManyRejectsError
from pipeline.base.progress import Silent
from pipeline.base.store import open_store
from pipeline.corpus.staging import journal as journal_module
from pipeline.corpus.staging.journal import StageJournal, pending_entries, read_journal
from pipeline.corpus.staging.manifest import DATA, CopiedObject, CopyEntry
from pipeline.corpus.staging.recipe import StageRecipe
from tests.support.staging import QUICK, content_of, digests_of, make_corpus, put_corpus, rejects_of, stage_quietly

KEYS = ["a.jpg", "a.txt", "train/x/1.jpg", "train/x/2.png", "train/deep/y/3.jpg", "val/x/1.jpg", "odd[1].jpg", ".hid"]


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ((), (), KEYS),
        (("*.jpg",), (), ["a.jpg", "train/x/1.jpg", "train/deep/y/3.jpg", "val/x/1.jpg", "odd[1].jpg"]),
        (("train/*/*.jpg",), (), ["train/x/1.jpg"]),
        (("train/**",), ("*.png",), ["train/x/1.jpg", "train/deep/y/3.jpg"]),
        (("**/x/*",), (), ["train/x/1.jpg", "train/x/2.png", "val/x/1.jpg"]),
        (("/a.*",), (), ["a.jpg", "a.txt"]),
        (("odd[1].jpg", "?.txt"), (), ["a.txt", "odd[1].jpg"]),
        ((), ("**/x/**", "*.txt"), ["a.jpg", "train/deep/y/3.jpg", "odd[1].jpg", ".hid"]),
        (("a.jpg",), ("a.jpg",), []),
    ],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], taken: list[str]) -> None:
    key_filter = StageRecipe(include=include, exclude=exclude).key_filter()
    assert [key for key in KEYS if key_filter(key)] == taken


def test_only_what_the_patterns_take_is_copied(tmp_path: Path) -> None:
    corpus = make_corpus(3)
    source = put_corpus(str(tmp_path / "source"), corpus)
    recipe = QUICK.model_copy(update={"include": ("*.jpg",), "exclude": ("class 1/*",)})
    done = stage_quietly(source, tmp_path / "copy", recipe=recipe)
    kept = {key: data for key, data in corpus.items() if key.endswith(".jpg") and not key.startswith("class 1/")}
    assert content_of(tmp_path / "copy") == digests_of(kept)
    assert (done.stage.manifest.num_objects, done.stage.manifest.num_bytes) == (
        len(kept),
        sum(map(len, kept.values())),
    )


def test_a_single_object_is_a_source(tmp_path: Path) -> None:
    put_corpus(str(tmp_path / "source"), {"one.parquet": b"one", "two.parquet": b"two"})
    stage_quietly(str(tmp_path / "source" / "one.parquet"), tmp_path / "copy")
    assert content_of(tmp_path / "copy") == {"one.parquet": sha256_hex(b"one")}


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_copy_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing"):
        stage_quietly(str(tmp_path / name), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_patterns_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    put_corpus(str(tmp_path / "source"), {"a.jpg": b"x"})
    with pytest.raises(InputError, match="include and exclude leave nothing"):
        stage_quietly(
            str(tmp_path / "source"), tmp_path / "copy", recipe=QUICK.model_copy(update={"include": ("*.png",)})
        )
    assert not (tmp_path / "copy").exists()


def test_a_target_inside_its_source_or_in_use_is_refused(tmp_path: Path) -> None:
    put_corpus(str(tmp_path / "source"), {"a.jpg": b"x"})
    with pytest.raises(InputError, match="inside the source"):
        stage_quietly(str(tmp_path / "source"), tmp_path / "source" / "corpora" / "a")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_bytes(b"mine")
    with pytest.raises(MismatchError, match="not empty"):
        stage_quietly(str(tmp_path / "source"), tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine"]


def test_names_that_cannot_be_kept_are_rejected_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    put_corpus(str(folder), {"fine.jpg": b"x", "spaces and\nlines.jpg": b"y"})
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.jpg")).write_bytes(b"z")
    with pytest.raises(TooManyRejectsError, match="name-not-unicode"):
        stage_quietly(str(folder), tmp_path / "copy")
    tolerant = QUICK.model_copy(update={"tolerated_rejects": 1})
    stage_quietly(str(folder), tmp_path / "copy", recipe=tolerant)
    assert rejects_of(tmp_path / "copy") == {r"bad\udcff.jpg": "name-not-unicode"}
    assert set(content_of(tmp_path / "copy")) == {"fine.jpg", "spaces and\nlines.jpg"}


def test_a_folder_is_copied_whole_with_what_links_lead_to_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "source"
    put_corpus(str(elsewhere), {"owl/1.jpg": b"owl", "single.jpg": b"single"})
    put_corpus(str(folder), {".hidden/.a.jpg": b"a", "cat/1.jpg": b"cat", "cat.jpg": b"name", "zoo.jpg": b"last"})
    (folder / "linked").symlink_to(elsewhere / "owl")
    (folder / "linked.jpg").symlink_to(elsewhere / "single.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.jpg")
    stage_quietly(str(folder), tmp_path / "copy", recipe=QUICK.model_copy(update={"tolerated_rejects": 2}))
    wanted = {".hidden/.a.jpg": b"a", "cat.jpg": b"name", "cat/1.jpg": b"cat", "linked.jpg": b"single"}
    assert content_of(tmp_path / "copy") == digests_of(wanted | {"linked/1.jpg": b"owl", "zoo.jpg": b"last"})
    assert rejects_of(tmp_path / "copy") == {"broken.jpg": "unreadable", "pipe.jpg": "unreadable"}


def test_an_unreadable_file_is_rejected_by_name(tmp_path: Path) -> None:
    put_corpus(str(tmp_path / "source"), {"fine.jpg": b"x"})
    (tmp_path / "source" / "broken.jpg").symlink_to("/proc/self/mem")  # its first page gives EIO, to root as well
    with pytest.raises(TooManyRejectsError, match=r"broken\.jpg: unreadable"):
        stage_quietly(str(tmp_path / "source"), tmp_path / "copy")
    assert rejects_of(tmp_path / "copy") == {"broken.jpg": "unreadable"}


def test_an_estimate_writes_nothing(tmp_path: Path) -> None:
    corpus = make_corpus(5)
    source = put_corpus(str(tmp_path / "source"), corpus)
    before = sorted(tmp_path.rglob("*"))
    found = estimate(source, QUICK.model_copy(update={"exclude": ("class 0/*",)}), Silent(), bytes_per_second=1000)
    kept = {key: data for key, data in corpus.items() if not key.startswith("class 0/")}
    assert (found.num_objects, found.num_left_out) == (len(kept), len(corpus) - len(kept))
    assert found.num_bytes == sum(map(len, kept.values()))
    assert (found.get_requests, found.put_requests) == (len(kept) - 1 + 3 + 1, len(kept) - 1 + 3 + 2)
    assert found.seconds == pytest.approx(found.num_bytes / 1000)
    assert estimate(source, QUICK, Silent()).bytes_per_second > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_journal_that_is_nearly_sorted_is_read_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "WINDOW", 20)
    monkeypatch.setattr(journal_module, "_FLUSH_ROWS", 7)
    store, draw = open_store(str(tmp_path)), random.Random(1)
    rows = [CopiedObject(f"{number:05d}", number, "etag", "sha", "none") for number in range(500)]
    for attempt in (rows[:300], rows[200:]):
        writer = StageJournal(store)
        ahead = sorted(attempt, key=lambda copied: copied.num_bytes + draw.uniform(0, 20))
        for copied in ahead:
            writer.add(copied)
        writer.flush()
    assert [copied.key for copied in read_journal(store)] == sorted(
        [copied.key for copied in rows[:300]] + [copied.key for copied in rows[200:]]
    )


def test_only_what_stands_in_the_listed_state_is_passed_over(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    writer = StageJournal(store)
    for key in ("a", "b", "c", "d"):
        writer.add(CopiedObject(key, 1, "old" if key == "b" else "now", "sha", "none"))
    writer.flush()
    for key, data in {"a": b"x", "b": b"x", "c": b"longer", "e": b"x"}.items():
        store.put(DATA + key, data)
    entries = [CopyEntry(key, 1, "now") for key in "abcde"]
    found = list(pending_entries(iter(entries), store))
    assert [item.key for item in found if isinstance(item, CopiedObject)] == ["a"]
    assert [item.key for item in found] == list("abcde")


def test_where_to(tmp_path: Path) -> None:
    assert target_uri("s3://public/b", "s3://bucket/ws", "birds", None) == "s3://bucket/ws/corpora/birds"
    assert target_uri("s3://public/b/", "s3://bucket/ws", None, None) == "s3://bucket/ws/corpora/b"
    assert target_uri("s3://public/b", None, None, "s3://bucket/place") == "s3://bucket/place"
    for workspace, name, to in (
        (None, None, None),
        ("ws", "birds", "s3://b/x"),
        (None, "birds", None),
    ):
        with pytest.raises(InputError, match="where to"):
            target_uri("photos", workspace, name, to)


def test_the_recipe_refuses_what_cannot_work() -> None:
    with pytest.raises(RecipeError, match="part_bytes"):
        build(StageRecipe, {"part_bytes": "1 MB"})
    assert StageRecipe(part_bytes="64 MiB").part_bytes == 64 << 20  # type: ignore[arg-type]
