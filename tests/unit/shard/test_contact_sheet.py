"""Samples are drawn fairly and read by their offsets; the sheet that shows them is the same bytes each time."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import DamageError
from pipeline.base.store import Store, open_store
from pipeline.base.store.local import LocalStore
from pipeline.records.dataset import DatasetCard
from pipeline.shard.contact_sheet import DrawnSample, draw_samples, read_samples, render_contact_sheet
from pipeline.shard.recipe import ShardRecipe
from tests.support.damage import flip, index_rows
from tests.support.datasets import corpus_of, make_dataset, shard_corpus
from tests.support.pictures import png

NAMES = ("cat", "animals/dogs/terriers/" + 40 * "long-", "Köln é", "犬", "line\nbreak\x1b[31m", "‮מ", "")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Store, DatasetCard]:
    """60 samples of 4 classes in 4 shards."""
    card = make_dataset(open_store(str(tmp_path)), "tiny", num_samples=60, num_classes=4, size=8)
    assert card.num_shards == 4
    return open_store(str(tmp_path / "datasets" / "tiny")), card


def square(colour: tuple[int, int, int], width: int = 30, height: int = 30) -> bytes:
    """A picture of one colour."""
    return png(np.full((height, width, 3), colour, dtype=np.uint8))


def test_every_sample_is_as_likely(made: tuple[Store, DatasetCard]) -> None:
    """400 draws of 6 of 60: each sample is in 40 of them, give or take 6 (one standard deviation)."""
    target, card = made
    counts = Counter(row["key"] for seed in range(400) for row in draw_samples(target, card, 6, seed))
    assert len(counts) == 60
    assert min(counts.values()) > 40 - 5 * 6
    assert max(counts.values()) < 40 + 5 * 6


def test_every_sample_of_a_class_is_as_likely(made: tuple[Store, DatasetCard]) -> None:
    target, card = made
    drawn = [draw_samples(target, card, 5, seed, label=2) for seed in range(200)]
    assert {tuple(row["labels"]) for rows in drawn for row in rows} == {(2,)}
    counts = Counter(row["key"] for rows in drawn for row in rows)
    assert len(counts) == card.statistics.label_counts[2] == 15
    assert min(counts.values()) > 67 - 5 * 7
    assert max(counts.values()) < 67 + 5 * 7


def test_a_draw_depends_on_the_seed_alone_and_has_no_sample_twice(made: tuple[Store, DatasetCard]) -> None:
    target, card = made
    assert draw_samples(target, card, 20, 1) == draw_samples(target, card, 20, 1)
    assert draw_samples(target, card, 20, 1) != draw_samples(target, card, 20, 2)
    assert len({row["key"] for row in draw_samples(target, card, 20, 1)}) == 20


@pytest.mark.parametrize("count", [1, 59, 60, 61, 1_000])
def test_no_more_samples_than_there_are(made: tuple[Store, DatasetCard], count: int) -> None:
    target, card = made
    rows = draw_samples(target, card, count, 0)
    assert len({row["key"] for row in rows}) == min(60, count)
    if count >= 60:
        assert [row["key"] for row in rows] == [row["key"] for at in range(4) for row in index_rows(target, at)]
        assert len(draw_samples(target, card, count, 0, label=1)) == 15


def test_samples_with_several_labels_belong_to_each_class(tmp_path: Path) -> None:
    images: dict[str, bytes | None] = {str(at): square((at, 0, 0)) for at in range(12)}
    labels = {str(at): [[], [0], [0, 1]][at % 3] for at in range(12)}
    card = shard_corpus(
        open_store(str(tmp_path)), "x", corpus_of(images, labels, ("a", "b")), ShardRecipe(max_samples=5)
    )
    target = open_store(str(tmp_path / "datasets" / "x"))
    assert [sorted(row["labels"]) for row in draw_samples(target, card, 50, 0, label=1)] == 4 * [[0, 1]]
    assert len(draw_samples(target, card, 50, 0, label=0)) == 8


def test_only_the_drawn_samples_are_read_of_the_shards(
    made: tuple[Store, DatasetCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, card = made
    read: list[tuple[str, int]] = []
    original = LocalStore.read_range

    def noted(self: LocalStore, key: str, start: int, length: int, etag: str = "") -> bytes:
        read.append((key, length))
        return original(self, key, start, length, etag)

    def refuse(_self: LocalStore, key: str, etag: str = "") -> bytes:
        raise AssertionError(f"{key} was read whole")

    rows = draw_samples(target, card, 3, 0)
    monkeypatch.setattr(LocalStore, "read_range", noted)
    monkeypatch.setattr(LocalStore, "read", refuse)
    assert len(read_samples(target, rows)) == 3
    assert sorted(read) == sorted((row["shard"], row["image_bytes"]) for row in rows)


def test_damage_is_told(made: tuple[Store, DatasetCard]) -> None:
    target, card = made
    rows = draw_samples(target, card, 60, 0)
    flip(target, "shard-000002.tar", next(row["image_offset"] for row in rows if row["shard"] == "shard-000002.tar"))
    with pytest.raises(DamageError, match=r"shard-000002\.tar: sample [0-9a-f]{20} is damaged"):
        read_samples(target, rows)
    target.delete("shard-000001.tar")
    with pytest.raises(DamageError, match=r"shard-000001\.tar is missing"):
        read_samples(target, rows)
    for label in (None, 1):
        target.put("shard-000003.parquet", b"no parquet")
        with pytest.raises(DamageError, match=r"shard-000003\.parquet is damaged"):
            draw_samples(target, card, 60, 0, label)
        target.delete("shard-000003.parquet")
        with pytest.raises(DamageError, match=r"shard-000003\.parquet is missing"):
            draw_samples(target, card, 60, 0, label)


def sheet_of(target: Store, card: DatasetCard, count: int) -> bytes:
    """A sheet of *count* samples."""
    return render_contact_sheet(card, read_samples(target, draw_samples(target, card, count, 0)), "some samples")


@pytest.mark.parametrize("count", [1, 2, 7, 48])
def test_a_sheet_is_the_same_bytes_each_time(made: tuple[Store, DatasetCard], count: int) -> None:
    first = sheet_of(*made, count)
    assert first == sheet_of(*made, count)
    with Image.open(io.BytesIO(first)) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert image.info == {}
        assert image.width >= 640


def test_every_picture_is_shown_whole_and_once(tmp_path: Path) -> None:
    """Pictures of one colour each: what of that colour stands on the sheet has the picture's shape."""
    sizes = [(30, 30), (300, 300), (600, 150), (150, 600), (2, 2), (1, 900), (160, 160), (161, 161)]
    shown = [(150, 150), (160, 160), (160, 40), (40, 160), (10, 10), (1, 160), (160, 160), (160, 160)]
    colours = [(200, 10 * at, 0) for at in range(len(sizes))]
    samples = [
        DrawnSample([0], *size, "png", square(colour, *size)) for colour, size in zip(colours, sizes, strict=True)
    ]
    card = make_dataset(open_store(str(tmp_path)), "x", num_samples=4)
    sheet = np.asarray(Image.open(io.BytesIO(render_contact_sheet(card, samples, "shapes"))))
    for colour, (width, height) in zip(colours, shown, strict=True):
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width, height)
        assert len(rows) == width * height


def test_any_name_can_be_written(tmp_path: Path) -> None:
    images: dict[str, bytes | None] = {str(at): square((0, 0, 10 * at)) for at in range(8)}
    labels = {str(at): [at] if at < 7 else list(range(7)) for at in range(8)}
    card = shard_corpus(open_store(str(tmp_path)), "x", corpus_of(images, labels, NAMES), ShardRecipe())
    target = open_store(str(tmp_path / "datasets" / "x"))
    odd, plain = (
        np.asarray(Image.open(io.BytesIO(sheet_of(target, card.model_copy(update={"class_names": names}), 8))))
        for names in (NAMES, tuple("abcdefg"))
    )
    assert odd.shape == plain.shape
    differs = (odd != plain).any(axis=2)
    pictures = (plain[:, :, :2] == 0).all(axis=2)
    assert differs.any()
    assert not (differs & pictures).any()  # a name that is too long stays below its picture


def test_captions_differ_by_class_also_where_the_font_has_no_letter(tmp_path: Path) -> None:
    """Two classes in a script that the font lacks are told apart by their numbers."""
    card = make_dataset(open_store(str(tmp_path)), "x", num_samples=4, num_classes=3)
    foreign = card.model_copy(update={"class_names": ("犬", "猫", "cat")})
    sheets = [
        render_contact_sheet(foreign, [DrawnSample([at], 30, 30, "png", square((1, 2, 3)))], "") for at in range(3)
    ]
    assert len(set(sheets)) == 3
    accented = card.model_copy(update={"class_names": ("", "", "c\u0327at")})
    assert sheets[2] == render_contact_sheet(accented, [DrawnSample([2], 30, 30, "png", square((1, 2, 3)))], "")


def test_an_image_that_does_not_decode_has_its_reason_in_its_place(tmp_path: Path) -> None:
    card = make_dataset(open_store(str(tmp_path)), "x", num_samples=4)
    whole, cut = square((9, 9, 9), 200, 200), square((9, 9, 9), 200, 200)[:-30]
    good, bad, good_again = (DrawnSample([0], 200, 200, "png", data) for data in (whole, cut, whole))
    sheet = np.asarray(Image.open(io.BytesIO(render_contact_sheet(card, [good, bad, good_again], ""))))
    assert np.count_nonzero((sheet == (9, 9, 9)).all(axis=2)) == 2 * 160 * 160


def test_a_name_that_is_too_long_stays_below_its_picture(tmp_path: Path) -> None:
    """Both its ends are there, and nothing of it stands right of the tile."""
    card = make_dataset(open_store(str(tmp_path)), "x", num_samples=4)
    long = "animals/" + 60 * "very-" + "small"
    names = (long, "", long.replace("small", "large"), long.replace("animals", "insects"))
    one = [DrawnSample([0], 30, 30, "png", square((1, 2, 3)))]
    sheets = [
        np.asarray(
            Image.open(io.BytesIO(render_contact_sheet(card.model_copy(update={"class_names": (name,)}), one, "")))
        )
        for name in names
    ]
    for other in sheets[1:]:
        columns = np.nonzero((sheets[0] != other).any(axis=(0, 2)))[0]
        assert columns.size
        assert columns.min() >= 22
        assert columns.max() < 22 + 160


def test_the_pixels_of_a_small_picture_stay_sharp(tmp_path: Path) -> None:
    card = make_dataset(open_store(str(tmp_path)), "x", num_samples=4)
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[::2, ::2] = (255, 0, 255)
    sheet = np.asarray(
        Image.open(io.BytesIO(render_contact_sheet(card, [DrawnSample([0], 16, 16, "png", png(pixels))], "")))
    )
    assert np.count_nonzero((sheet == (255, 0, 255)).all(axis=2)) == 64 * 5 * 5
