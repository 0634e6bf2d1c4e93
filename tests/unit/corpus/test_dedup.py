"""Planted duplicates of every kind, with the exact report; nothing is lost, nothing counted twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base import disk_table as base_rows
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import open_store
from pipeline.corpus import worker
from pipeline.corpus.dedup import needed_depth, remove_duplicates
from pipeline.corpus.exact_duplicates import IMAGE_SCHEMA, find_exact_duplicates
from pipeline.corpus.recipe import DuplicatesRecipe
from pipeline.records.corpus import Corpus, key_of
from tests.support.pictures import bmp, noise, png
from tests.support.scanning import Labels, corpus_of, origins_of, put_evaluation_set, scanner_in

A, B, C, D = (noise(9, 8, seed) for seed in range(4))
Told = list[tuple[str, str, str, bool]]


@pytest.fixture(autouse=True, params=["one chunk", "many chunks"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many chunks":
        monkeypatch.setattr(worker, "_CHUNK_ROWS", 2)
        monkeypatch.setattr(base_rows, "_ROWS_OF_A_BUCKET", 2)


def recipe(**fields: Any) -> DuplicatesRecipe:
    return DuplicatesRecipe.model_validate(fields)


def removed_from(corpus: Corpus, asked: DuplicatesRecipe, folder: Path) -> Corpus:
    """*corpus* without its duplicates; input = entries + rejects + duplicates is checked on the way."""
    scanner = scanner_in(folder / "work")
    scanned = scanner.scan(corpus, needed_depth(asked))
    done = remove_duplicates(corpus, scanned, asked, open_store(str(folder)), scanner)
    assert all_of(done) == all_of(corpus)
    assert done.num_input == corpus.num_input
    return done


def all_of(corpus: Corpus) -> Counter[str]:
    return Counter(origins_of(corpus.entries) + origins_of(corpus.rejects) + origins_of(corpus.duplicates))


def told(done: Corpus) -> Told:
    return [tuple(row.values()) for row in done.duplicates.table().to_pylist()]


def rejected(done: Corpus) -> list[tuple[str, str]]:
    return [(row["origin"], row["reason"]) for row in done.rejects.table().to_pylist()]


def within(by: str, images: dict[str, bytes | None], labels: Labels, folder: Path) -> tuple[Corpus, Told]:
    done = removed_from(corpus_of(images, labels), recipe(within=by), folder)
    return done, told(done)


COPIES = {"z/1.png": png(A), "b.png": png(B), "a/2.png": png(A), "m.bmp": bmp(A), "n.png": png(A), "c.png": png(C)}


def test_equal_files(tmp_path: Path) -> None:
    done, report = within("file", COPIES, {}, tmp_path)
    assert report == [("z/1.png", "same-file", "a/2.png", False), ("n.png", "same-file", "a/2.png", False)]
    assert origins_of(done.entries) == ["b.png", "a/2.png", "m.bmp", "c.png"]


def test_equal_pixels_in_another_format_and_saved_again(tmp_path: Path) -> None:
    images = COPIES | {"d.png": png(A, compress_level=1)}
    assert len({images[name] for name in ("a/2.png", "m.bmp", "d.png")}) == 3
    done, report = within("pixels", images, {}, tmp_path)
    assert report == [
        ("z/1.png", "same-file", "a/2.png", False),
        ("m.bmp", "same-pixels", "a/2.png", False),
        ("n.png", "same-file", "a/2.png", False),
        ("d.png", "same-pixels", "a/2.png", False),
    ]
    assert origins_of(done.entries) == ["b.png", "a/2.png", "c.png"]


def test_equal_bytes_of_another_shape_are_no_copies(tmp_path: Path) -> None:
    row = noise(1, 64, 5)
    images = {"wide": png(row), "square": png(row.reshape(8, 8, 3)), "tall": png(row.reshape(64, 1, 3))}
    assert within("pixels", images, {}, tmp_path)[1] == []


@pytest.mark.parametrize(
    ("kept", "copy", "differ"),
    [
        ([1], [1], False),
        ([1], [2], True),
        ([1, 2], [2, 1], False),
        ([1], [], True),
        (None, [], False),
        (None, [1], True),
    ],
)
def test_label_conflicts_are_told(kept: list[int] | None, copy: list[int] | None, differ: bool, tmp_path: Path) -> None:
    labels = {"a": kept, "b": copy, "other": [3]}
    done, report = within("file", {"b": png(A), "a": png(A), "other": png(B)}, labels, tmp_path)
    assert report == [("b", "same-file", "a", differ)]
    assert done.entries.table()["labels"].to_pylist() == [kept, [3]]


@pytest.mark.parametrize("by", ["file", "pixels"])
def test_copies_that_cannot_be_decoded_are_rejected(by: str, tmp_path: Path) -> None:
    cut = png(A)[:100]
    images = {"x": cut, "y": cut, "good-1": png(B), "html": b"<html>", "good-2": png(B), "w": cut, "n": None, "o": None}
    done, report = within(by, images, {}, tmp_path)
    assert report == [("good-2", "same-file", "good-1", False)]
    reasons = dict(rejected(done))
    assert {name: reasons.pop(name) for name in "xywno"} == dict.fromkeys("xyw", "truncated") | dict.fromkeys(
        "no", "null-image"
    )
    # nobody decodes what has no copy when only files are compared: the shard stage will
    assert reasons == ({} if by == "file" else {"html": "not-an-image"})


EVALUATION = {"t1": png(C, compress_level=1), "t2": png(D), "t3": png(C)}
TRAINING = {"1.png": png(C), "2.bmp": bmp(C), "3.png": png(A), "4.png": png(D, compress_level=2), "5.png": png(C)}


@pytest.mark.parametrize("inside", ["none", "file", "pixels"])
def test_evaluation_images_by_file(inside: str, tmp_path: Path) -> None:
    put_evaluation_set(open_store(str(tmp_path)), "exam", EVALUATION)
    corpus = corpus_of(TRAINING)
    done = removed_from(corpus, recipe(within=inside, against=["exam"], against_by="file"), tmp_path)
    hits = [(name, "evaluation-file", f"exam/{key_of('t3')}", False) for name in ("1.png", "5.png")]
    # whoever compares pixels anyway also finds the copy of a hit
    also = [("2.bmp", "evaluation-pixels", f"exam/{key_of('t3')}", False)] if inside == "pixels" else []
    assert told(done) == [hits[0], *also, hits[1]]


@pytest.mark.parametrize("inside", ["none", "file", "pixels"])
def test_evaluation_images_by_pixels(inside: str, tmp_path: Path) -> None:
    put_evaluation_set(open_store(str(tmp_path)), "exam", EVALUATION)
    corpus = corpus_of(TRAINING | {"6.png": png(A)})
    done = removed_from(corpus, recipe(within=inside, against=["exam"]), tmp_path)
    smallest = min(f"exam/{key_of(name)}" for name in ("t1", "t3"))
    assert smallest != f"exam/{key_of('t3')}"  # the one that is named for an equal file all the same
    expected = [
        ("1.png", "evaluation-file", f"exam/{key_of('t3')}", False),
        ("2.bmp", "evaluation-pixels", smallest, False),
        ("4.png", "evaluation-pixels", f"exam/{key_of('t2')}", False),
        ("5.png", "evaluation-file", f"exam/{key_of('t3')}", False),
    ]
    assert told(done) == expected + ([] if inside == "none" else [("6.png", "same-file", "3.png", False)])


def test_several_evaluation_sets(tmp_path: Path) -> None:
    workspace = open_store(str(tmp_path))
    put_evaluation_set(workspace, "exam-b", {"t": png(A)})
    put_evaluation_set(workspace, "exam-a", {"t": png(A), "u": png(B)})
    done = removed_from(corpus_of(TRAINING), recipe(against=["exam-b", "exam-a"], against_by="file"), tmp_path)
    assert told(done) == [("3.png", "evaluation-file", f"exam-a/{key_of('t')}", False)]


def test_evaluation_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset 'exam'"):
        removed_from(corpus_of(TRAINING), recipe(against=["exam"]), tmp_path)


DAMAGES = [
    (by, file, how)
    for by in ("file", "pixels")
    for file in ("shards.parquet", "shard-000001.parquet", "shard-000001.tar")
    for how in ("gone", "cut", "flipped")
    if (by, file, how) != ("file", "shard-000001.tar", "flipped")  # the tars are not read when files are compared
]


@pytest.mark.parametrize(("by", "file", "how"), DAMAGES)
def test_damaged_evaluation_set(by: str, file: str, how: str, tmp_path: Path) -> None:
    put_evaluation_set(open_store(str(tmp_path)), "exam", EVALUATION)
    path = tmp_path / "datasets" / "exam" / file
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[:-1])
    if how == "flipped":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(DamageError, match=r"dataset exam: .* is not what its card says"):
        removed_from(corpus_of(TRAINING), recipe(against=["exam"], against_by=by), tmp_path)


def test_evaluation_image_that_cannot_be_decoded_is_told(tmp_path: Path) -> None:
    put_evaluation_set(open_store(str(tmp_path)), "exam", {"t1": png(C)[:100], "t2": png(D)})
    said: list[str] = []
    scanner = scanner_in(tmp_path / "work")
    scanner.progress.message = said.append
    corpus = corpus_of(TRAINING)
    asked = recipe(against=["exam"])
    done = remove_duplicates(corpus, scanner.scan(corpus, "pixels"), asked, open_store(str(tmp_path)), scanner)
    assert [row[0] for row in told(done)] == ["4.png"]
    assert said == ["1 images of exam cannot be decoded, so nothing equals them"]


def test_what_was_left_out_before_stays_left_out(tmp_path: Path) -> None:
    first = removed_from(corpus_of(COPIES | {"cut": png(A)[:100]}), recipe(within="pixels"), tmp_path / "1")
    more = replace(corpus_of({"new": png(D), "null": None}), rejects=first.rejects, duplicates=first.duplicates)
    again = removed_from(more, recipe(within="file"), tmp_path / "2")
    assert rejected(again) == [("cut", "truncated"), ("null", "null-image")]
    assert told(again) == told(first) != []


def test_digests_that_share_their_first_bits_are_not_equal(tmp_path: Path) -> None:
    heads = [b"same bit" + bytes(24), b"same bit" + bytes(23) + b"\1", b"same bit" + b"\1" + bytes(23)]
    digests = [heads[0], heads[1], heads[2], heads[1], heads[0]]
    columns = {
        "position": range(5),
        "origin": list("edcba"),
        "labels": [[0]] * 5,
        "sha256": digests,
        "pixels": [None] * 5,
    }
    images = pa.table(columns, schema=IMAGE_SCHEMA)
    found = pa.concat_tables(find_exact_duplicates([images], 5, recipe(within="file"))).to_pylist()
    assert [(row["origin"], row["reason"], row["of"]) for row in found] == [
        ("e", "same-file", "a"),
        ("d", "same-file", "b"),
        ("b", "kept", ""),
        ("a", "kept", ""),
    ]


def test_order_of_the_listing_decides_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    contents = [png(A), bmp(A), png(B), png(C), png(D), bmp(D), png(D)[:90], b"", png(noise(3, 3, 9))]
    images = {f"{at:03d}": contents[rng.integers(len(contents))] for at in range(60)}
    labels = {name: [int(rng.integers(3))] for name in images}
    put_evaluation_set(open_store(str(tmp_path)), "exam", {"t": png(C)})
    asked = recipe(within="pixels", against=["exam"])
    reports = []
    for number in range(3):
        mixed = {name: images[name] for name in rng.permutation(list(images)).tolist()}
        corpus = corpus_of(mixed, labels)
        scanner = scanner_in(tmp_path / "work" / str(number))
        done = remove_duplicates(corpus, scanner.scan(corpus, "pixels"), asked, open_store(str(tmp_path)), scanner)
        assert origins_of(done.entries) == [name for name in mixed if name in set(origins_of(done.entries))]
        reports.append((sorted(told(done)), sorted(rejected(done)), sorted(origins_of(done.entries))))
    assert reports[0] == reports[1] == reports[2]
    assert all(reports[0])
