"""One shard: what is written, indexed and rejected, and when an earlier attempt's shard is taken up."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, SupersededError
from pipeline.base.store import Store, open_store
from pipeline.images.check import Reencode
from pipeline.images.decode import decode
from pipeline.records.corpus import Reject, key_of
from pipeline.records.dataset import CARD, INDEX_SCHEMA
from pipeline.shard import writer as write_module
from pipeline.shard.index import index_name
from pipeline.shard.plan import PlannedShard
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.writer import ExpectedDigests, WrittenShard, find_undamaged, find_written, write_shard
from tests.support.datasets import MemoryReader, listing_of
from tests.support.pictures import bmp, noise, png, png_that_claims

GOLDEN_SHA256 = "2c0883eaaf514aad94bdd3cd516534a2f1c49f0e268c07934c8763977d3d73a8"
PICTURES: dict[str, bytes | None] = {
    f"a/{at}.bmp": bmp(np.arange((3 + at) * 12).reshape(3 + at, 4, 3)) for at in range(3)
}
LABELS = {"a/0.bmp": [2], "a/1.bmp": [], "a/2.bmp": [0, 5]}


@pytest.fixture
def target(tmp_path: Path) -> Store:
    """An empty dataset folder."""
    return open_store(str(tmp_path / "dataset"))


def shard_of(images: dict[str, bytes | None], labels: dict[str, list[int]] | None = None) -> PlannedShard:
    """Shard number 3, with the images in the order given."""
    return PlannedShard(3, listing_of(images, labels or {name: [0] for name in images}))


def write(target: Store, images: dict[str, bytes | None], labels: dict[str, list[int]] | None = None) -> WrittenShard:
    """Write one shard of *images*, as plan "plan"."""
    return write_shard(shard_of(images, labels), MemoryReader(images), target, "plan", ShardRecipe())


def index_of(target: Store) -> list[dict[str, Any]]:
    """The rows of the index."""
    return pq.read_table(io.BytesIO(target.read("shard-000003.parquet"))).to_pylist()


def test_the_golden_shard(target: Store) -> None:
    """Bitmaps, since their bytes depend on no encoder. Changing it means: raise ``identity._FORMAT``."""
    written = write(target, PICTURES, LABELS)
    assert written.entry is not None
    assert written.entry.sha256 == GOLDEN_SHA256
    assert sha256_hex(target.read("shard-000003.tar")) == GOLDEN_SHA256


def test_the_entry_tells_what_was_put(target: Store) -> None:
    written = write(target, PICTURES, LABELS)
    assert written.entry is not None
    assert written.entry.name == "shard-000003.tar"
    assert written.entry.num_samples == 3
    assert written.entry.num_bytes == len(target.read("shard-000003.tar"))
    assert written.entry.index_sha256 == sha256_hex(target.read("shard-000003.parquet"))
    assert (written.number, written.rejects) == (3, ())


def test_the_index_points_at_the_bytes(target: Store) -> None:
    write(target, PICTURES, LABELS)
    archive, rows = target.read("shard-000003.tar"), index_of(target)
    assert [row["origin"] for row in rows] == list(PICTURES)
    for at, row in enumerate(rows):
        image = archive[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
        assert image == PICTURES[row["origin"]]
        assert row["sha256"] == sha256_hex(image)
        assert row["key"] == key_of(row["origin"]) == sha256_hex(row["origin"].encode())[:20]
        assert row["labels"] == LABELS[row["origin"]]
        assert (row["width"], row["height"], row["format"]) == (4, 3 + at, "bmp")
    labels = [archive[row["label_offset"] : row["label_offset"] + row["label_bytes"]] for row in rows]
    assert labels == [b"2", b'{"labels": []}', b'{"labels": [0, 5]}']
    schema = pq.read_schema(io.BytesIO(target.read("shard-000003.parquet")))
    assert schema.equals(INDEX_SCHEMA, check_metadata=False)


def test_stock_webdataset_reads_and_decodes_the_shard(target: Store) -> None:
    images: dict[str, bytes | None] = {f"x/{at}.png": png(noise(6, 5, at)) for at in range(4)}
    write(target, images, {name: [at] for at, name in enumerate(images)})
    path = target.local_path("shard-000003.tar")
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in index_of(target)]
    assert [sample["cls"] for sample in samples] == [0, 1, 2, 3]
    for sample, data in zip(samples, images.values(), strict=True):
        np.testing.assert_array_equal(sample["png"], decode(data or b"")[0])


def test_the_members_extension_is_the_contents_not_the_names(target: Store) -> None:
    write(target, {"x/lies.jpg": bmp(noise(2, 2))})
    assert index_of(target)[0]["format"] == "bmp"
    assert b".bmp\0" in target.read("shard-000003.tar")
    assert b".jpg" not in target.read("shard-000003.tar")


def test_bad_images_are_rejected_with_their_reason_and_the_rest_is_kept(target: Store) -> None:
    images: dict[str, bytes | None] = {
        "0": png(noise(4, 4, 0)),
        "1": png(noise(40, 40, 1))[:1000],
        "2": b"",
        "3": b"<html>not found</html>",
        "4": None,
        "5": png_that_claims(2**31 - 1, 1),
        "6": png(noise(4, 4, 6)),
    }
    shard = shard_of({**images, "7": b""})
    written = write_shard(shard, MemoryReader(images), target, "plan", ShardRecipe())  # the reader finds no "7"
    assert [(reject.origin, reject.reason) for reject in written.rejects] == [
        ("1", "truncated"),
        ("2", "empty"),
        ("3", "not-an-image"),
        ("4", "null-image"),
        ("5", "too-large"),
        ("7", "unreadable"),
    ]
    assert [row["origin"] for row in index_of(target)] == ["0", "6"]
    assert written.entry is not None
    assert written.entry.num_samples == 2


def test_rejects_leave_no_trace_in_the_tar(target: Store) -> None:
    good: dict[str, bytes | None] = {"0": png(noise(4, 4, 0)), "1": png(noise(4, 4, 1))}
    calm = write(target, good).entry
    with_bad = write(target, {"0": good["0"], "x": b"junk", "1": good["1"]}).entry
    assert calm is not None
    assert with_bad is not None
    assert with_bad.sha256 == calm.sha256


def test_a_shard_of_rejects_alone_has_no_tar_but_is_remembered(target: Store) -> None:
    images: dict[str, bytes | None] = {"0": b"junk", "1": None}
    written = write(target, images)
    assert written.entry is None
    assert len(written.rejects) == 2
    assert target.head("shard-000003.tar") is None
    assert find_written(3, target, "plan") == written


def test_what_was_written_is_found_again(target: Store) -> None:
    images = {**PICTURES, "bad": b"junk"}
    written = write(target, images)
    assert written.rejects == (Reject("bad", "not-an-image"),)
    assert find_written(3, target, "plan") == written


def test_another_plan_is_not_taken_up(target: Store) -> None:
    write(target, PICTURES, LABELS)
    assert find_written(3, target, "another plan") is None


def test_nothing_is_found_where_nothing_is(target: Store) -> None:
    assert find_written(3, target, "plan") is None


@pytest.mark.parametrize("loss", ["tar missing", "tar cut", "index missing", "index cut", "index empty"])
def test_half_a_shard_is_not_taken_up(target: Store, loss: str) -> None:
    write(target, PICTURES, LABELS)
    part, what = loss.split()
    key = {"tar": "shard-000003.tar", "index": "shard-000003.parquet"}[part]
    data = target.read(key)
    target.delete(key)
    if what != "missing":
        target.put(key, data[:-5] if what == "cut" else b"")
    assert find_written(3, target, "plan") is None
    again = write(target, PICTURES, LABELS)
    assert target.read(key) == data
    assert find_written(3, target, "plan") == again


def test_the_index_is_put_after_the_tar(target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[str] = []
    original = os.replace

    def noted(source: Path, place: Path) -> None:
        put.append(Path(place).name)
        original(source, place)

    monkeypatch.setattr(os, "replace", noted)
    write(target, PICTURES, LABELS)
    assert put == ["shard-000003.tar", "shard-000003.parquet", "made-000003"]


def test_a_tar_of_another_plan_is_not_taken_up(target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source changes and changes back at equal sizes; between, a writer is killed before its index."""
    write(target, PICTURES, LABELS)
    others: dict[str, bytes | None] = {name: (data or b"")[:-1] + b"\x7f" for name, data in PICTURES.items()}

    def killed(point: str) -> None:
        if point == "shard.after-tar":
            raise KeyboardInterrupt

    monkeypatch.setattr(write_module, "fail_point", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shard(shard_of(others, LABELS), MemoryReader(others), target, "other", ShardRecipe())
    assert sha256_hex(target.read("shard-000003.tar")) != GOLDEN_SHA256
    assert find_written(3, target, "plan") is None


def test_a_note_is_of_one_index(target: Store) -> None:
    note = "work/made-000003"
    write(target, PICTURES, LABELS)
    mine = target.read(note)
    write_shard(shard_of(PICTURES), MemoryReader(PICTURES), target, "other labels", ShardRecipe())
    target.put(note, mine)
    assert find_written(3, target, "plan") is None


def test_where_a_card_stands_nothing_is_put(target: Store) -> None:
    """Another writer was faster: what it published must not be touched."""
    target.put(CARD, b"{}")
    with pytest.raises(SupersededError):
        write(target, PICTURES, LABELS)
    assert [info.key for info in target.list()] == [CARD]


def test_a_shard_that_is_made_again_must_have_the_digest_of_the_card(target: Store) -> None:
    entry = write(target, PICTURES, LABELS).entry
    assert entry is not None
    target.put(CARD, b"{}")
    tar = target.read(entry.name)
    shard, reader = shard_of(PICTURES, LABELS), MemoryReader(PICTURES)
    expected = ExpectedDigests(entry.sha256, entry.index_sha256)
    again = write_shard(shard, reader, target, "another plan", ShardRecipe(), expected)
    assert again.entry == entry
    assert find_undamaged(3, target, expected) == find_undamaged(3, target, ExpectedDigests()) == again
    with pytest.raises(DamageError, match=r"shard-000003\.tar cannot be made again: the source has changed"):
        write_shard(shard, reader, target, "plan", ShardRecipe(), ExpectedDigests("0" * 64))
    assert target.read(entry.name) == tar


def test_an_index_that_comes_out_otherwise_is_not_put(target: Store) -> None:
    """The tar is the same, as one that was rejected is now rejected for another reason."""
    entry = write(target, {**PICTURES, "bad": b"junk"}).entry
    assert entry is not None
    target.put(CARD, b"{}")
    before = {info.key: target.read(info.key) for info in target.list()}
    changed = {**PICTURES, "bad": b""}
    expected = ExpectedDigests(entry.sha256, entry.index_sha256)
    with pytest.raises(DamageError, match=r"shard-000003\.parquet cannot be made again: the source has changed"):
        write_shard(shard_of(changed), MemoryReader(changed), target, "plan", ShardRecipe(), expected)
    assert entry.sha256 == sha256_hex(target.read(entry.name))
    del before["work/made-000003"]  # nothing tells that it is done: it has to be made again
    assert {info.key: target.read(info.key) for info in target.list()} == before


def test_what_stands_of_a_dataset_is_looked_at(target: Store) -> None:
    entry = write(target, PICTURES, LABELS).entry
    assert entry is not None
    assert find_undamaged(3, target, ExpectedDigests(entry.sha256, "0" * 64)) is None
    target.put(entry.name, b"cut")
    assert find_undamaged(3, target, ExpectedDigests()) is None
    target.delete(index_name(entry.name))
    assert find_undamaged(3, target, ExpectedDigests()) is None


def test_the_header_check_reads_no_pixels(target: Store) -> None:
    damaged = bytearray(png(noise(40, 50, 1)))
    damaged[1000:1010] = bytes(10)
    images: dict[str, bytes | None] = {"damaged": bytes(damaged), "junk": b"junk", "whole": png(noise(4, 5, 0))}
    written = write_shard(shard_of(images), MemoryReader(images), target, "plan", ShardRecipe(check="header"))
    assert [(reject.origin, reject.reason) for reject in written.rejects] == [("junk", "not-an-image")]
    assert [(row["origin"], row["width"], row["height"]) for row in index_of(target)] == [
        ("damaged", 50, 40),
        ("whole", 5, 4),
    ]
    assert written.statistics.summary(1).channel_mean is None


def test_resized_images_are_stored_and_indexed_as_they_are_stored(target: Store) -> None:
    images: dict[str, bytes | None] = {"big": png(noise(40, 60, 1)), "small": png(noise(8, 9, 1))}
    recipe = ShardRecipe(resize=Reencode(mode="short", size=20, format="png", quality=95))
    write_shard(shard_of(images), MemoryReader(images), target, "plan", recipe)
    archive = target.read("shard-000003.tar")
    for row, size in zip(index_of(target), [(30, 20), (9, 8)], strict=True):
        stored = archive[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
        assert (row["width"], row["height"]) == size
        assert decode(stored)[0].shape == (size[1], size[0], 3)
        assert row["sha256"] == sha256_hex(stored)


def test_statistics_are_exact(target: Store) -> None:
    pictures = [noise(5, 7, 1), noise(6, 4, 2), noise(30, 3, 3)]
    images: dict[str, bytes | None] = {str(at): png(pixels) for at, pixels in enumerate(pictures)}
    written = write(target, images, {"0": [1], "1": [0, 1], "2": []})
    facts = written.statistics.summary(2)
    means = np.mean([pixels.reshape(-1, 3).mean(0) for pixels in pictures], axis=0)
    squares = np.mean([(pixels.reshape(-1, 3).astype(float) ** 2).mean(0) for pixels in pictures], axis=0)
    assert facts.channel_mean == pytest.approx(tuple(means), abs=1e-6)
    assert facts.channel_std == pytest.approx(tuple(np.sqrt(squares - means**2)), abs=1e-6)
    assert facts.label_counts == (1, 2)
    assert facts.num_multi_label == 1
    assert (facts.width_min, facts.width_max, facts.height_min, facts.height_max) == (3, 7, 5, 30)
    assert facts.width_mean == pytest.approx(14 / 3)
    assert facts.short_sides == {"2": 1, "4": 2}
    assert facts.aspects == {"0": 1, "0.5": 1, "1.25": 1}
    again = find_written(3, target, "plan")
    assert again is not None
    assert again.statistics == written.statistics


def test_the_name_of_the_index() -> None:
    assert index_name("shard-000001.tar") == "shard-000001.parquet"


def test_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    entries = [write(open_store(str(tmp_path / name)), PICTURES, LABELS) for name in ("one", "two")]
    assert entries[0] == entries[1]
