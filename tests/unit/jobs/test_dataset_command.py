"""``vitpipe dataset``: the card for people and for programs, a contact sheet, DALI's indexes; and what it refuses."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.base.disk_table import DiskTable
from pipeline.base.store import open_store
from pipeline.records.corpus import DUPLICATES_SCHEMA, ClassEntry, Corpus, Reject
from pipeline.shard.recipe import ShardRecipe
from tests.support.damage import flip
from tests.support.datasets import corpus_of, make_dataset, shard_corpus
from tests.support.pictures import noise, png

NAMES = ("cat", "[red]dog[/red]", "犬", "line\nbreak\x1b[2J", "empty")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Vitpipe = Callable[..., Said]


@pytest.fixture
def vitpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Vitpipe:
    """Calls ``vitpipe dataset`` in a folder that has the workspace ``ws``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vitpipe", "dataset", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A dataset with a bit of everything: rejects, duplicates, several labels, odd names, a split. Its folder."""
    images: dict[str, bytes | None] = {f"{at}.png": png(noise(10 + at, 40, at)) for at in range(12)}
    images |= {"bad-1": b"junk", "bad-2": b"<html>", "null": None}
    labels = {f"{at}.png": [0, 0, 0, 1, 1, 2, 3, 3, 0, 0, 0][at : at + 1] or [0, 1] for at in range(12)}
    listed = corpus_of(images, labels, NAMES, (Reject("gone", "unreadable"),))
    copies = [
        {
            "origin": f"copy-{at}",
            "reason": ("same-pixels", "same-file")[at > 0],
            "of": "0.png",
            "labels_differ": at == 1,
        }
        for at in range(3)
    ]
    corpus = Corpus(
        entries=listed.entries,
        classes=tuple(ClassEntry(name=name, synset=f"n{at:08d}") for at, name in enumerate(NAMES)),
        reader=listed.reader,
        rejects=listed.rejects,
        duplicates=DiskTable.of(pa.Table.from_pylist(copies, schema=DUPLICATES_SCHEMA)),
        made_of={"split": {"part": "train", "share": 0.9}, "sources": [{"source": "photos/"}]},
    )
    shard_corpus(open_store(str(tmp_path / "ws")), "photos", corpus, ShardRecipe(max_samples=5))
    return tmp_path / "ws" / "datasets" / "photos"


def shown(vitpipe: Vitpipe, name: str = "photos") -> dict[str, Any]:
    """What ``show --json`` says."""
    said = vitpipe("show", name, "-w", "ws", "--json")
    assert (said.code, said.err) == (0, "")
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_show_counts_everything(vitpipe: Vitpipe, photos: Path) -> None:
    found = shown(vitpipe)
    counts = [found[f"num_{what}"] for what in ("input", "samples", "rejected", "duplicates", "multi_label")]
    assert counts == [19, 12, 4, 3, 1]
    assert found["rejects"] == {"not-an-image": 2, "null-image": 1, "unreadable": 1}
    assert found["duplicates"] == {"same-file": 2, "same-pixels": 1}
    assert found["duplicates_with_other_labels"] == 1
    assert (found["height_min"], found["height_max"], found["width_mean"]) == (10, 21, 40.0)
    assert found["formats"] == {"png": 12}
    assert found["made_of"]["split"]["part"] == "train"
    assert found["recipe"]["max_samples"] == 5
    assert len(found["digest"]) == 64


def test_show_counts_classes_and_their_balance(vitpipe: Vitpipe, photos: Path) -> None:
    found = shown(vitpipe)
    assert [row["samples"] for row in found["classes"]] == [7, 3, 1, 2, 0]
    assert [row["name"] for row in found["classes"]] == list(NAMES)
    assert found["classes"][1] == {
        "number": 1, "name": NAMES[1], "samples": 3, "synset": "n00000001", "parent": ""
    }  # fmt: skip
    shares = [count / 13 for count in (7, 3, 1, 2)]
    balance = found["balance"]
    assert (balance["largest"], balance["smallest"], balance["empty"], balance["ratio"]) == (7, 1, 1, 7.0)
    assert balance["effective_classes"] == pytest.approx(math.prod(share**-share for share in shares))


def test_show_of_even_classes_is_their_number(vitpipe: Vitpipe, tmp_path: Path) -> None:
    make_dataset(open_store(str(tmp_path / "ws")), "even", num_samples=20, num_classes=5, size=8)
    balance = shown(vitpipe, "even")["balance"]
    assert balance["ratio"] == 1.0
    assert balance["effective_classes"] == pytest.approx(5.0)


def test_show_for_people(vitpipe: Vitpipe, photos: Path) -> None:
    said = vitpipe("show", "photos", "-w", "ws")
    assert (said.code, said.err) == (0, "")
    for part in (
        "19 = 12 written + 4 rejected + 3 duplicates",
        "1 duplicates had other labels",
        "png: 12 (100 %)",
        "10 to 21, mean 15.5",
        "5, 1 of them empty",
        "largest / smallest = 7",
        "part=train, share=0.9",
        "source=photos/",
        "max_samples=5",
        "not-an-image",
        "same-file",
        "n00000001",
        json.loads((photos / "dataset.json").read_text())["digest"],
    ):
        assert part in said.out, part


def test_show_takes_no_name_for_markup_or_for_a_command_to_the_terminal(vitpipe: Vitpipe, photos: Path) -> None:
    said = vitpipe("show", "photos", "-w", "ws")
    assert "[red]dog[/red]" in said.out
    assert "犬" in said.out
    assert "line?break?[2J" in said.out
    assert "\x1b" not in said.out


def test_show_of_many_classes_names_the_ends_and_json_all(vitpipe: Vitpipe, tmp_path: Path) -> None:
    make_dataset(open_store(str(tmp_path / "ws")), "many", num_samples=50, num_classes=40, size=8)
    out = vitpipe("show", "many", "-w", "ws").out
    assert "(24 more; all with --json)" in out
    assert [name in out for name in ("class-0 ", "class-7 ", "class-8 ", "class-31 ", "class-32 ", "class-39 ")] == [
        True, True, False, False, True, True
    ]  # fmt: skip
    assert len(shown(vitpipe, "many")["classes"]) == 40


def test_show_of_images_without_labels_and_without_pixels(vitpipe: Vitpipe, tmp_path: Path) -> None:
    images: dict[str, bytes | None] = {str(at): png(noise(9, 9, at)) for at in range(3)}
    recipe = ShardRecipe(check="header")
    shard_corpus(open_store(str(tmp_path / "ws")), "bare", corpus_of(images, {}, ()), recipe)
    said = vitpipe("show", "bare", "-w", "ws")
    assert said.code == 0
    assert "checked by their headers only" in said.out
    found = shown(vitpipe, "bare")
    assert (found["classes"], found["channel_mean"], found["rejects"]) == ([], None, {})
    assert found["balance"]["ratio"] is None


def test_sample_writes_a_png(vitpipe: Vitpipe, photos: Path, tmp_path: Path) -> None:
    said = vitpipe("sample", "photos", "-w", "ws", "--out", "out/sheet.png", "--count", "5", "--seed", "3", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["samples"], found["out"]) == (5, str(tmp_path / "out" / "sheet.png"))
    first = (tmp_path / "out" / "sheet.png").read_bytes()
    Image.open(io.BytesIO(first)).load()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sheet.png"]
    for seed, same in (("3", True), ("4", False)):
        vitpipe("sample", "photos", "-w", "ws", "--out", "again.png", "--count", "5", "--seed", seed)
        assert ((tmp_path / "again.png").read_bytes() == first) == same


def test_sample_of_a_class(vitpipe: Vitpipe, photos: Path) -> None:
    for name, count in (("cat", 7), ("[red]dog[/red]", 3), ("犬", 1)):
        said = vitpipe("sample", "photos", "-w", "ws", "--out", "c.png", "--class", name, "--json")
        assert json.loads(said.out)["samples"] == count


def test_a_sheet_that_cannot_be_drawn_leaves_the_old_one(vitpipe: Vitpipe, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_bytes(b"old")
    flip(open_store(str(photos)), "shard-000000.tar", 1_536)
    said = vitpipe("sample", "photos", "-w", "ws", "--out", "sheet.png")
    assert said.code == 1
    assert "shard-000000.tar: sample" in said.err
    assert (tmp_path / "sheet.png").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.png", "ws"]


def test_dali_index_writes_a_file_for_each_shard(vitpipe: Vitpipe, photos: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in photos.iterdir())
    said = vitpipe("dali-index", "photos", "-w", "ws", "--out", "idx", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["files"] == 3
    names = sorted(path.name for path in (tmp_path / "idx").iterdir())
    assert names == [path.replace(".tar", ".idx") for path in before if path.endswith(".tar")]
    assert sorted(path.name for path in photos.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("show", "phots"), "no dataset 'phots'"),
        (("show", "../photos"), "'..'"),
        (("sample", "phots", "--out", "x.png"), "no dataset 'phots'"),
        (("dali-index", "phots", "--out", "x"), "no dataset 'phots'"),
        (("sample", "photos", "--out", "x.jpg"), "x.jpg is not the name of a PNG file"),
        (("sample", "photos", "--out", "ws"), "ws is not the name of a PNG file"),
        (("sample", "photos", "--out", "folder.png"), "folder.png is not the name of a PNG file"),
        (("sample", "photos", "--out", "s3://bucket/x.png"), "not a path of this machine"),
        (("sample", "photos", "--out", "x.png", "--class", "cats"), "did you mean 'cat'?"),
        (("sample", "photos", "--out", "x.png", "--class", "zebra"), "vitpipe dataset show photos lists them"),
        (("sample", "photos", "--out", "x.png", "--class", "empty"), "class 'empty' of photos has no samples"),
        (("dali-index", "photos", "--out", "file"), "file is a file"),
        (("dali-index", "photos", "--out", "ws/datasets/photos"), "is the dataset itself"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_2(
    vitpipe: Vitpipe, photos: Path, tmp_path: Path, arguments: tuple[str, ...], part: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    said = vitpipe(*arguments, "-w", "ws")
    assert said.code == 2, said
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert part in said.err
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "photos"),
        ("dali-index", "photos"),
        ("sample", "photos", "--out", "x.png", "--count", "0"),
        ("sample", "photos", "--out", "x.png", "--count", "1001"),
        ("sample", "photos", "--out", "x.png", "--seed", "-1"),
        ("paint", "photos"),
    ],
)
def test_usage_errors(vitpipe: Vitpipe, arguments: tuple[str, ...]) -> None:
    said = vitpipe(*arguments, "-w", "ws")
    assert (said.code, said.out) == (2, "")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("command", [("show",), ("sample", "--out", "x.png"), ("dali-index", "--out", "x")])
def test_a_workspace_is_needed(vitpipe: Vitpipe, command: tuple[str, ...]) -> None:
    said = vitpipe(command[0], "photos", *command[1:])
    assert said.code == 2
    assert "which workspace?" in said.err


@pytest.mark.parametrize("name", ["rejects.parquet", "duplicates.parquet", "dataset.json"])
def test_damage_is_told_with_the_file(vitpipe: Vitpipe, photos: Path, name: str) -> None:
    (photos / name).write_bytes(b"{")
    said = vitpipe("show", "photos", "-w", "ws")
    assert said.code == 1
    assert len(said.err.splitlines()) == 1
    assert name in said.err
