"""Before the shards: only what was asked for is done, and a source that is read in order is copied once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.base.progress import Silent
from pipeline.base.store import open_store
from pipeline.corpus.prepare import PrepareSettings, prepare
from pipeline.corpus.recipe import DuplicatesRecipe, SplitRecipe
from pipeline.corpus.scan import Scanner
from pipeline.records.corpus import Corpus
from tests.support.pictures import bmp, noise, png
from tests.support.scanning import corpus_of, in_process, origins_of, put_evaluation_set, scanner_in

IMAGES: dict[str, bytes | None] = {f"{at:02d}.png": png(noise(8, 8, at)) for at in range(20)}
PLANTED = IMAGES | {
    "copy.png": IMAGES["03.png"],
    "copy.bmp": bmp(noise(8, 8, 4)),
    "exam.png": png(noise(8, 8, 99), compress_level=1),
    "html.jpg": b"<html>",
    "null.jpg": None,
}
LABELS = {name: [at % 3] for at, name in enumerate(PLANTED)}


def preparation(folder: Path, parts: dict[str, float] | None = None, **duplicates: Any) -> PrepareSettings:
    return PrepareSettings(
        DuplicatesRecipe.model_validate(duplicates), SplitRecipe(parts=parts or {}), open_store(str(folder))
    )


def read_all(corpus: Corpus) -> dict[str, bytes | None]:
    table = corpus.entries.table()
    return dict(zip(table["origin"].to_pylist(), corpus.reader.read(table), strict=True))


def test_nothing_asked_nothing_done(tmp_path: Path) -> None:
    corpus = corpus_of(PLANTED)
    assert prepare(corpus, preparation(tmp_path), scanner_in(tmp_path / "work"), 100) == {"": corpus}
    assert corpus.reader.reads == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("random_access", [False, True])
def test_everything_at_once(random_access: bool, tmp_path: Path) -> None:
    card = put_evaluation_set(open_store(str(tmp_path)), "exam", {"t": png(noise(8, 8, 99))})
    corpus = corpus_of(PLANTED, LABELS, missing=["gone"], random_access=random_access, made_of={"sources": ["here"]})
    asked = preparation(tmp_path, {"train": 0.6, "validation": 0.4}, within="pixels", against=["exam"])
    parts = prepare(corpus, asked, scanner_in(tmp_path / "work"), 3)
    assert sum(part.num_input for part in parts.values()) == corpus.num_input == 26
    duplicates = {
        row["origin"]: row["reason"] for part in parts.values() for row in part.duplicates.table().to_pylist()
    }
    assert duplicates == {"copy.png": "same-file", "copy.bmp": "same-pixels", "exam.png": "evaluation-pixels"}
    rejects = {row["origin"]: row["reason"] for part in parts.values() for row in part.rejects.table().to_pylist()}
    assert rejects == {"html.jpg": "not-an-image", "null.jpg": "null-image", "gone": "unreadable"}
    corpus.reader.reads.clear()
    assert read_all(parts["train"]) | read_all(parts["validation"]) == IMAGES
    assert (corpus.reader.reads == []) is not random_access
    for name, share in (("train", 0.6), ("validation", 0.4)):
        made_of = parts[name].made_of
        assert made_of["sources"] == ["here"]
        assert made_of["duplicates"] == {"within": "pixels", "against": {"exam": card.digest}, "against_by": "pixels"}
        assert (made_of["split"]["part"], made_of["split"]["share"]) == (name, share)
        assert asked.provenance_by_part()[name].items() <= made_of.items()
        assert parts[name].class_names == corpus.class_names


def test_a_source_in_order_is_copied_when_many_shards_need_it(tmp_path: Path) -> None:
    corpus = corpus_of(PLANTED, random_access=False)
    few = prepare(corpus, preparation(tmp_path), scanner_in(tmp_path / "work"), 2)[""]
    assert (few, corpus.reader.reads) == (corpus, [])
    many = prepare(corpus, preparation(tmp_path), scanner_in(tmp_path / "work"), 3)[""]
    assert corpus.reader.reads == list(PLANTED)
    assert many.random_access
    assert origins_of(many.rejects) == ["null.jpg"]
    assert read_all(many) == {name: data for name, data in PLANTED.items() if data is not None}
    assert many.made_of == corpus.made_of  # where the bytes are read from shapes nothing


def test_prepared_twice_is_the_same(tmp_path: Path) -> None:
    corpus = corpus_of(PLANTED, LABELS, random_access=False)
    asked = preparation(tmp_path, {"a": 0.5, "b": 0.5}, within="file")
    first, second = (prepare(corpus, asked, scanner_in(tmp_path / "work"), 9) for _ in range(2))
    assert corpus.reader.reads == list(PLANTED)  # 03.png is decoded, for it has a copy, but from what was copied
    for name, part in first.items():
        for rows in ("entries", "rejects", "duplicates"):
            assert getattr(part, rows).table().equals(getattr(second[name], rows).table())


def test_shapes_are_known_before_anything_is_read(tmp_path: Path) -> None:
    assert preparation(tmp_path).provenance_by_part() == {"": {}}
    provenance_by_part = preparation(tmp_path, {"a": 0.25, "b": 0.75}, within="file").provenance_by_part()
    assert provenance_by_part["b"] == {
        "duplicates": {"within": "file", "against": {}, "against_by": "pixels"},
        "split": {"part": "b", "share": 0.75, "shares": {"a": 0.25, "b": 0.75}, "stratified": False},
    }
    with pytest.raises(InputError, match="no dataset 'exam'"):
        preparation(tmp_path, against=["exam"]).provenance_by_part()


def test_what_was_rejected_while_listing_is_kept(tmp_path: Path) -> None:
    listed = corpus_of(PLANTED)
    bad = corpus_of({"bad.jpg": b"<html>"})
    rejects = prepare(bad, preparation(tmp_path, within="pixels"), scanner_in(tmp_path / "1"), 1)[""].rejects
    done = prepare(
        replace(listed, rejects=rejects), preparation(tmp_path, within="pixels"), scanner_in(tmp_path / "2"), 1
    )[""]
    assert origins_of(done.rejects) == ["bad.jpg", "html.jpg", "null.jpg"]
    assert done.num_input == len(PLANTED) + 1


def test_workspace_in_a_bucket(s3_workspace: str) -> None:
    workspace = open_store(s3_workspace)
    put_evaluation_set(
        workspace, "exam", {"t": png(noise(8, 8, 99)), "u": png(noise(8, 8, 7)), "v": png(noise(8, 8, 98))}
    )
    scanner = Scanner(open_store(f"{s3_workspace}/datasets/new/work"), in_process, Silent())
    corpus = corpus_of(PLANTED, LABELS, random_access=False)
    asked = PrepareSettings(DuplicatesRecipe(within="pixels", against=("exam",)), SplitRecipe(), workspace)
    for _ in range(2):
        done = prepare(corpus, asked, scanner, 9)[""]
        assert sorted(origins_of(done.duplicates)) == ["07.png", "copy.bmp", "copy.png", "exam.png"]
        assert read_all(done) == {name: data for name, data in IMAGES.items() if name != "07.png"}
    assert corpus.reader.reads == list(PLANTED)
