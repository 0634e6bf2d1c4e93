"""Verification at its three depths: a whole dataset passes, and any damage is told by the name of the file."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import DamageError
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.records.corpus import Corpus
from pipeline.records.dataset import CARD
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.verify import Depth, verify_dataset
from tests.support.datasets import MemoryReader, listing_of, make_dataset, shard_corpus
from tests.support.pictures import noise, png

DEPTHS: tuple[Depth, ...] = ("fast", "bytes", "full")


@pytest.fixture
def target(tmp_path: Path) -> Store:
    """The folder of a dataset of 20 images in two shards."""
    workspace = open_store(str(tmp_path))
    make_dataset(workspace, "tiny", num_samples=20, max_samples=10, size=8)
    return open_store(f"{workspace.uri}/datasets/tiny")


def problems_of(target: Store, depth: Depth) -> list[str]:
    """What verification finds."""
    return verify_dataset(target, depth, Silent())


def flip(target: Store, key: str, at: int) -> None:
    """Turn one bit of the byte at *at*."""
    data = bytearray(target.read(key))
    data[at] ^= 1
    target.put(key, bytes(data))


def edit_card(target: Store, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the card with something changed."""
    card = json.loads(target.read(CARD))
    change(card)
    target.put(CARD, json.dumps(card).encode())


def first_row(target: Store) -> dict[str, Any]:
    """The first sample of the second shard's index."""
    row: dict[str, Any] = pq.read_table(io.BytesIO(target.read("shard-000001.parquet"))).to_pylist()[0]
    return row


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_whole_dataset_passes(target: Store, depth: Depth) -> None:
    assert problems_of(target, depth) == []


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_dataset_with_rejects_and_several_labels_passes(tmp_path: Path, depth: Depth) -> None:
    images: dict[str, bytes | None] = {str(at): png(noise(5, 5, at)) for at in range(6)} | {"x": b"junk", "y": None}
    labels = {"0": [0], "1": [0, 1], "2": [1]}
    corpus = Corpus(listing_of(images, labels), ("a", "b"), MemoryReader(images))
    shard_corpus(open_store(str(tmp_path)), "mixed", corpus, ShardRecipe(max_samples=3))
    assert problems_of(open_store(str(tmp_path / "datasets/mixed")), depth) == []


@pytest.mark.parametrize("depth", ["bytes", "full"])
def test_a_flipped_byte_of_an_image_is_told_with_its_sample(target: Store, depth: Depth) -> None:
    row = first_row(target)
    flip(target, "shard-000001.tar", row["image_offset"] + row["image_bytes"] // 2)
    problems = problems_of(target, depth)
    assert problems[0].startswith("shard-000001.tar: damaged")
    assert problems[1:] == [
        f"shard-000001.tar: sample {row['key']} at byte {row['image_offset']}: its bytes are damaged"
    ]


@pytest.mark.parametrize("depth", ["bytes", "full"])
def test_a_flipped_byte_of_a_header_is_told_with_its_sample(target: Store, depth: Depth) -> None:
    row = first_row(target)
    flip(target, "shard-000001.tar", row["image_offset"] - 512 + 3)
    problems = problems_of(target, depth)
    assert problems[0].startswith("shard-000001.tar: damaged")
    assert f"sample {row['key']} at byte {row['image_offset']}: its tar header is damaged" in problems[1]


@pytest.mark.parametrize("where", ["label", "label header", "padding"])
def test_a_flipped_byte_beside_the_images_is_told(target: Store, where: str) -> None:
    row = first_row(target)
    places = {
        "label": row["label_offset"],
        "label header": row["label_offset"] - 512 + 130,
        "padding": len(target.read("shard-000001.tar")) - 1,
    }
    flip(target, "shard-000001.tar", places[where])
    for depth in ("bytes", "full"):
        assert problems_of(target, depth)[0].startswith("shard-000001.tar: damaged"), depth


def test_a_flipped_byte_of_an_index_is_told(target: Store) -> None:
    flip(target, "shard-000000.parquet", 40)
    for depth in ("bytes", "full"):
        problems = problems_of(target, depth)
        assert len(problems) == 1
        assert problems[0].startswith("shard-000000.parquet: damaged")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ["rejects.parquet", "shards.parquet"])
def test_a_flipped_byte_of_a_table_is_told(target: Store, name: str, depth: Depth) -> None:
    flip(target, name, 12)
    assert problems_of(target, depth) == [f"{name}: its bytes are not those that the card names"]


def test_any_flipped_byte_of_any_file_is_told_by_name(target: Store) -> None:
    """Forty bytes, drawn with a seed, one at a time."""
    draw = random.Random(4)
    keys = [info.key for info in target.list() if info.key != CARD]
    for _ in range(40):
        key = draw.choice(keys)
        whole = target.read(key)
        flip(target, key, draw.randrange(len(whole)))
        for depth in ("bytes", "full"):
            assert any(problem.startswith(f"{key}: ") for problem in problems_of(target, depth)), key
        target.put(key, whole)
    assert problems_of(target, "full") == []


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000001.parquet", "shards.parquet", "rejects.parquet"])
def test_a_missing_file_is_told(target: Store, name: str, depth: Depth) -> None:
    target.delete(name)
    assert problems_of(target, depth) == [f"{name}: missing"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_cut_shard_is_told(target: Store, depth: Depth) -> None:
    data = target.read("shard-000000.tar")
    target.put("shard-000000.tar", data[:-1])
    assert problems_of(target, depth) == [f"shard-000000.tar: {len(data) - 1} bytes, the card says {len(data)}"]


@pytest.mark.parametrize("depth", ["bytes", "full"])
def test_two_shards_that_changed_places_are_told(target: Store, depth: Depth) -> None:
    one, two = target.read("shard-000000.tar"), target.read("shard-000001.tar")
    target.put("shard-000000.tar", two)
    target.put("shard-000001.tar", one)
    problems = problems_of(target, depth)
    assert {problem.partition(":")[0] for problem in problems} == {"shard-000000.tar", "shard-000001.tar"}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("num_input", "dataset.json: input 21 is not written 20 + rejected 0 + duplicates 0"),
        ("num_samples", "shards.parquet: the shards' samples do not add up to the card's 21"),
        ("num_rejected", "rejects.parquet: 0 rows, the card says 1"),
        ("num_duplicates", "dataset.json: input 20 is not written 20 + rejected 0 + duplicates 1"),
        ("num_shards", "shards.parquet: 2 shards, the card says 3"),
        ("num_bytes", "shards.parquet: the shards' bytes do not add up to the card's"),
    ],
)
def test_counts_that_do_not_add_up_are_told(target: Store, field: str, told: str, depth: Depth) -> None:
    edit_card(target, lambda card: card.update({field: card[field] + 1}))
    assert any(problem.startswith(told) for problem in problems_of(target, depth))


@pytest.mark.parametrize("depth", DEPTHS)
def test_another_dataset_digest_is_told(target: Store, depth: Depth) -> None:
    edit_card(target, lambda card: card.update(digest="0" * 64))
    assert problems_of(target, depth) == ["shards.parquet: the shards' digests do not give the card's dataset digest"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_card_that_names_no_tables_does_not_pass(target: Store, depth: Depth) -> None:
    edit_card(target, lambda card: card.update(tables={}))
    assert {problem.partition(":")[0] for problem in problems_of(target, depth)} == {
        "shards.parquet",
        "rejects.parquet",
    }


def test_the_depths_differ_in_what_they_read(target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = type(target).read

    def noted(self: Any, key: str) -> bytes:
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(type(target), "read", noted)
    problems_of(target, "fast")
    assert sorted(read) == [CARD, "rejects.parquet", "shards.parquet"]
    read.clear()
    problems_of(target, "bytes")
    assert {"shard-000000.tar", "shard-000001.tar", "shard-000000.parquet"} <= set(read)


def test_only_the_full_depth_decodes(target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.images.decode import ImageRejectedError

    def refuse(_: bytes) -> None:
        raise ImageRejectedError("undecodable")

    monkeypatch.setattr("pipeline.shard.verify.decode", refuse)
    assert problems_of(target, "bytes") == []
    problems = problems_of(target, "full")
    assert len(problems) == 20
    assert all(problem.endswith(": undecodable") for problem in problems)


def test_the_full_depth_asks_webdataset(target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shard.interchange.keys_by_webdataset", lambda _: ["another"])
    assert problems_of(target, "bytes") == []
    assert problems_of(target, "full") == [
        f"shard-00000{number}.tar: webdataset reads other samples than its index names" for number in range(2)
    ]


def test_without_a_card_there_is_no_dataset(target: Store) -> None:
    target.delete(CARD)
    with pytest.raises(FileNotFoundError):
        problems_of(target, "fast")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema_version": 2}', b'{"schema_version": 1}', b"[]", b"null"])
def test_a_damaged_card_is_told_by_name(target: Store, damage: bytes) -> None:
    target.put(CARD, damage)
    with pytest.raises(DamageError, match=r"dataset\.json"):
        problems_of(target, "fast")
