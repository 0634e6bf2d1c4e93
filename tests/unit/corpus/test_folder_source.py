"""Image folders as they are found: what is listed, under which label, and what a run is refused for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.base.store import open_store
from pipeline.corpus import open_corpus
from pipeline.corpus.sources.folder import suffix_of
from pipeline.records.corpus import LISTING_SCHEMA, Corpus


def fill(folder: Path, *names: str) -> Path:
    """Files below *folder*, each holding its own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def labels_of(corpus: Corpus) -> dict[str, list[str]]:
    """Origin -> names of its classes."""
    rows = corpus.listing.to_pylist()
    return {row["origin"]: [corpus.class_names[label] for label in row["labels"]] for row in rows}


def test_the_folder_is_the_class(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "dog/1.jpg", "cat/2.png", "dog/3.webp")))
    assert corpus.class_names == ("cat", "dog")
    assert labels_of(corpus) == {"cat/2.png": ["cat"], "dog/1.jpg": ["dog"], "dog/3.webp": ["dog"]}
    assert corpus.listing.schema == LISTING_SCHEMA
    assert corpus.listing["num_bytes"].to_pylist() == [len("cat/2.png"), len("dog/1.jpg"), len("dog/3.webp")]
    assert corpus.listing["row"].to_pylist() == [-1, -1, -1]


def test_nested_classes_are_their_whole_path(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "a/b/1.jpg", "a/c/1.jpg", "a/1.jpg", "b/1.jpg")))
    assert corpus.class_names == ("a", "a/b", "a/c", "b")
    assert labels_of(corpus)["a/b/1.jpg"] == ["a/b"]


def test_images_at_the_top_have_no_label(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "1.jpg", "cat/2.jpg")))
    assert labels_of(corpus) == {"1.jpg": [], "cat/2.jpg": ["cat"]}


def test_images_without_any_folder(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "1.jpg", "2.jpg")))
    assert corpus.class_names == ()
    assert labels_of(corpus) == {"1.jpg": [], "2.jpg": []}


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
    assert list(corpus.reader.read(corpus.listing)) == [name.encode()]


def test_a_name_that_is_not_unicode_is_a_reject_and_the_rest_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/cat/\xff.jpg")).write_bytes(b"x")
    corpus = open_corpus(str(tmp_path))
    assert labels_of(corpus) == {"cat/1.jpg": ["cat"]}
    assert [(reject.origin, reject.reason) for reject in corpus.rejects] == [("cat/\\udcff.jpg", "name-not-unicode")]


def test_the_same_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "cat/1.jpg", "dog/1.jpg")))
    assert labels_of(corpus) == {"cat/1.jpg": ["cat"], "dog/1.jpg": ["dog"]}


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg")
    (tmp_path / "cat/2.jpg").symlink_to(tmp_path / "cat/1.jpg")
    (tmp_path / "cat/3.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "cat/loop").symlink_to(tmp_path)
    assert sorted(labels_of(open_corpus(str(tmp_path)))) == ["cat/1.jpg", "cat/2.jpg"]


def test_one_image_is_a_corpus(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "cat/2.jpg")
    assert labels_of(open_corpus(str(tmp_path / "cat/1.jpg"))) == {"1.jpg": []}


def test_a_missing_file_costs_its_own_row_only(tmp_path: Path) -> None:
    corpus = open_corpus(str(fill(tmp_path, "x/1.jpg", "x/2.jpg", "x/3.jpg")))
    (tmp_path / "x/2.jpg").unlink()
    images = corpus.reader.read(corpus.listing)
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
    [("a/b.JPG", "jpg"), ("b.tar.gz", "gz"), ("dir.d/file", ""), ("x", ""), ("a.b/c.png", "png"), ("x.", "")],
)
def test_suffixes(key: str, suffix: str) -> None:
    assert suffix_of(key) == suffix


def test_a_folder_in_a_bucket(s3_workspace: str) -> None:
    store = open_store(f"{s3_workspace}/pictures")
    for name in ("cat/1 é.jpg", "dog/2.png", "3.jpg", "dog/.hidden.jpg", "readme.txt"):
        store.put(name, name.encode())
    open_store(f"{s3_workspace}/pictures-of-others").put("owl/1.jpg", b"x")
    corpus = open_corpus(f"{s3_workspace}/pictures")
    assert labels_of(corpus) == {"cat/1 é.jpg": ["cat"], "dog/2.png": ["dog"], "3.jpg": []}
    read = list(corpus.reader.read(corpus.listing))
    assert read == [origin.encode() for origin in corpus.listing["origin"].to_pylist()]


def test_an_empty_prefix_of_a_bucket_is_refused(s3_workspace: str) -> None:
    with pytest.raises(InputError, match="it is empty"):
        open_corpus(f"{s3_workspace}/nothing")
