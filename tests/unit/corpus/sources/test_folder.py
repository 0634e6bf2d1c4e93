"""Image folders as they are found: what is listed, under which label, and what a run is refused for."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.base.errors import FailedError, InputError
from pipeline.base.store import ObjectChangedError, open_store
from pipeline.corpus import open_corpus
from pipeline.corpus.sources.location import suffix_of
from pipeline.records.corpus import LISTING_SCHEMA
from tests.support.sources import fill, images_of, labels_of, rejects_of


def test_the_folder_is_the_class(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "dog/1.jpg", "cat/2.png", "dog/3.webp")))
    assert corpus.class_names == ("cat", "dog")
    assert labels_of(corpus) == {"cat/2.png": ["cat"], "dog/1.jpg": ["dog"], "dog/3.webp": ["dog"]}
    listing = corpus.entries.table()
    assert listing.schema == LISTING_SCHEMA
    assert listing["num_bytes"].to_pylist() == [len("cat/2.png"), len("dog/1.jpg"), len("dog/3.webp")]
    assert listing["row"].to_pylist() == listing["offset"].to_pylist() == [-1, -1, -1]
    assert listing["source"].to_pylist() == [0, 0, 0]
    assert corpus.random_access
    source = {"kind": "folder", "name": "", "weight": None, "num_listed": 3, "num_taken": 3}
    assert corpus.made_of == {"sources": [source], "labels": "single"}


def test_nested_classes_are_their_whole_path(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "a/b/1.jpg", "a/c/1.jpg", "a/1.jpg", "b/1.jpg")))
    assert corpus.class_names == ("a", "a/b", "a/c", "b")
    assert labels_of(corpus)["a/b/1.jpg"] == ["a/b"]


def test_images_beside_the_classes_lack_a_label(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "1.jpg", "cat/2.jpg")))
    assert labels_of(corpus) == {"cat/2.jpg": ["cat"]}
    assert rejects_of(corpus) == [("1.jpg", "label-missing")]


def test_images_without_any_folder(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "1.jpg", "2.jpg")))
    assert corpus.class_names == ()
    assert labels_of(corpus) == {"1.jpg": [], "2.jpg": []}
    assert corpus.made_of["labels"] == "none"


def test_hidden_files_and_folders_are_not_listed(tmp_path: Path) -> None:
    names = ["cat/1.jpg", ".hidden.jpg", "cat/.2.jpg", ".git/3.jpg", "cat/.thumbs/4.jpg", "__MACOSX/cat/._1.jpg"]
    assert labels_of(open_corpus(str(fill(tmp_path, *names)))) == {"cat/1.jpg": ["cat"]}


def test_other_files_are_not_listed(tmp_path: Path) -> None:
    names = ["cat/1.jpg", "README.md", "cat/notes.txt", "cat/1.jpg.json", "labels.csv", "cat/movie.mp4", "cat/x.jpg~"]
    assert labels_of(open_corpus(str(fill(tmp_path, *names)))) == {"cat/1.jpg": ["cat"]}


def test_a_folder_with_only_other_files_is_no_class(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    corpus = open_corpus(str(fill(tmp_path, "cat/1.jpg", "docs/readme.txt")))
    assert corpus.class_names == ("cat",)


@pytest.mark.parametrize(
    "name",
    [
        "class with spaces/a picture.jpg",
        "猫/ねこ.png",
        "a.b.c/d.e.f.JPEG",
        "x/no suffix",
        "x/100%25 #1?.jpg",
        "x/line\nbreak.jpg",
        "x/quote'\"\\.jpg",
        "x/" + "n" * 240 + ".jpg",
        "/".join(["deep" * 10] * 24) + "/1.jpg",
        "-rf/--help.jpg",
        "x/\u00e9.jpg",  # one character
        "x/e\u0301.jpg",  # the same, of two
    ],
)
def test_any_name_is_kept_and_its_file_is_read(tmp_path: Path, name: str) -> None:
    corpus = open_corpus(str(fill(tmp_path, name)))
    assert labels_of(corpus) == {name: [name.rpartition("/")[0]]}
    assert images_of(corpus) == {name: name.encode()}


def test_a_name_that_is_not_unicode_is_a_reject_and_the_rest_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/cat/\xff.jpg")).write_bytes(b"x")
    corpus = open_corpus(str(tmp_path))
    assert labels_of(corpus) == {"cat/1.jpg": ["cat"]}
    assert rejects_of(corpus) == [("cat/\\udcff.jpg", "name-not-unicode")]


def test_the_same_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "cat/1.jpg", "dog/1.jpg")))
    assert labels_of(corpus) == {"cat/1.jpg": ["cat"], "dog/1.jpg": ["dog"]}


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "owl/1.jpg", "owl/deep/2.jpg")
    root = fill(tmp_path / "root", "cat/1.jpg")
    (root / "cat/2.jpg").symlink_to(root / "cat/1.jpg")
    (root / "cat/loop").symlink_to(root)
    (root / "cat/self").symlink_to(root / "cat/self")
    (root / "owl").symlink_to(tmp_path / "elsewhere/owl")
    (tmp_path / "elsewhere/owl/back").symlink_to(tmp_path / "elsewhere")
    corpus = open_corpus(str(root))
    assert labels_of(corpus) == {
        "cat/1.jpg": ["cat"],
        "cat/2.jpg": ["cat"],
        "owl/1.jpg": ["owl"],
        "owl/deep/2.jpg": ["owl/deep"],
        "owl/back/owl/1.jpg": ["owl/back/owl"],
        "owl/back/owl/deep/2.jpg": ["owl/back/owl/deep"],
    }
    assert rejects_of(corpus) == [("cat/self", "unreadable")]


def test_links_cannot_multiply_a_tree(tmp_path: Path) -> None:
    for level in range(40):  # 2^40 ways lead to the picture
        folder = tmp_path / f"level-{level:02d}"
        folder.mkdir()
        (folder / "a").symlink_to(tmp_path / f"level-{level + 1:02d}")
        (folder / "b").symlink_to(tmp_path / f"level-{level + 1:02d}")
    fill(tmp_path, "level-40/1.jpg")
    assert 1 <= open_corpus(str(tmp_path / "level-00")).entries.num_rows <= 80


def test_a_broken_link_and_what_is_no_file_are_rejects(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg")
    (tmp_path / "cat/2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "cat/notes.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "cat/3.jpg")
    corpus = open_corpus(str(tmp_path))
    assert labels_of(corpus) == {"cat/1.jpg": ["cat"]}
    assert rejects_of(corpus) == [("cat/2.jpg", "unreadable"), ("cat/3.jpg", "unreadable")]
    assert corpus.num_input == 3


def test_an_unreadable_file_costs_its_own_row_only(tmp_path: Path) -> None:
    fill(tmp_path, "x/1.jpg", "x/3.jpg")
    (tmp_path / "x/2.jpg").symlink_to("/proc/self/mem")  # can be opened, and gives an input/output error
    corpus = open_corpus(str(tmp_path))
    images = corpus.reader.read(corpus.entries.table())
    assert next(images) == b"x/1.jpg"
    with pytest.raises(OSError, match=r"x/2\.jpg"):
        next(images)
    assert next(images) == b"x/3.jpg"


def test_a_file_without_permission_costs_its_own_row_only(tmp_path: Path) -> None:
    fill(tmp_path, "x/1.jpg", "x/2.jpg")
    (tmp_path / "x/1.jpg").chmod(0)
    corpus = open_corpus(str(tmp_path))
    entries = corpus.entries.table()
    with as_nobody(tmp_path):
        images = corpus.reader.read(entries)
        with pytest.raises(OSError, match=r"x/1\.jpg"):
            next(images)
        assert next(images) == b"x/2.jpg"


def test_a_folder_without_permission_is_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "x/1.jpg", "y/2.jpg")
    (tmp_path / "y").chmod(0)
    with as_nobody(tmp_path), pytest.raises(InputError, match="y/ cannot be listed: Permission denied"):
        open_corpus(str(tmp_path))


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Without the powers of root, if the test has them; the way to *folder* is opened for everybody."""
    user = os.geteuid()
    ways = [way for way in (folder, *folder.parents) if way.stat().st_uid == user and not way.stat().st_mode & 0o010]
    modes = {way: way.stat().st_mode for way in ways}
    for way in ways:
        way.chmod(modes[way] | 0o055)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for way, mode in modes.items():
            way.chmod(mode)


def test_a_file_that_was_replaced_after_listing_is_not_read(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "x/1.jpg", "x/2.jpg")))
    (tmp_path / "x/1.jpg").unlink()
    (tmp_path / "x/1.jpg").write_bytes(b"another")
    images = corpus.reader.read(corpus.entries.table())
    with pytest.raises(ObjectChangedError):
        next(images)
    assert next(images) == b"x/2.jpg"


def test_etags_are_those_of_the_store(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "x/1.jpg")))
    info = open_store(str(tmp_path)).head("x/1.jpg")
    assert info is not None
    assert corpus.entries.table()["etag"].to_pylist() == [info.etag]


def test_what_is_wrong_with_the_machine_is_no_reject(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "x/1.jpg")))
    entries = corpus.entries.table()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(FailedError):
            next(corpus.reader.read(entries))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_listing_is_the_same_each_time(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number % 7}/{number * 7919 % 1000}.jpg" for number in range(200)))
    assert open_corpus(str(tmp_path)).entries.table().equals(open_corpus(str(tmp_path)).entries.table())


def test_one_image_is_a_corpus(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "cat/2.jpg")
    assert labels_of(open_corpus(str(tmp_path / "cat/1.jpg"))) == {"1.jpg": []}


def test_a_missing_file_costs_its_own_row_only(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "x/1.jpg", "x/2.jpg", "x/3.jpg")))
    (tmp_path / "x/2.jpg").unlink()
    images = corpus.reader.read(corpus.entries.table())
    assert next(images) == b"x/1.jpg"
    with pytest.raises(FileNotFoundError):
        next(images)
    assert next(images) == b"x/3.jpg"
    assert next(images, "end") == "end"


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        open_corpus(str(tmp_path / "nowhere"))
    assert caught.value.exit_code == 2


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is empty") as caught:
        open_corpus(str(tmp_path))
    assert caught.value.exit_code == 2


def test_a_folder_of_other_files_is_refused_naming_their_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no images in .* \(only: csv, txt\)") as caught:
        open_corpus(str(fill(tmp_path, "a/1.txt", "b.csv")))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("key", "suffix"),
    [
        ("a/b.JPG", "jpg"),
        ("b.tar.gz", "tar.gz"),
        ("b.gz", "gz"),
        ("dir.d/file", ""),
        ("x", ""),
        ("a.b/c.png", "png"),
        ("x.", ""),
    ],
)
def test_suffixes(key: str, suffix: str) -> None:
    assert suffix_of(key) == suffix
