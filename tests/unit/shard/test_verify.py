"""Verification at its three depths: a whole dataset passes; damage is told by the name of its file, and no other's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.disk_table import DiskTable
from pipeline.base.errors import DamageError
from pipeline.base.seeds import generator
from pipeline.base.store import Store, open_store
from pipeline.records.corpus import DUPLICATES_SCHEMA, Corpus, Reject
from pipeline.records.dataset import CARD, DUPLICATES_TABLE, REJECTS_TABLE, SHARDS_TABLE, DatasetCard, ShardEntry
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.verify import Depth, check_shard
from tests.support.damage import DEPTHS, edit_card, files_of, flip, flipped, index_rows, problems_of, seal_table
from tests.support.datasets import corpus_of, make_dataset, shard_corpus
from tests.support.pictures import noise, png

BELOW_FAST: tuple[Depth, ...] = ("bytes", "full")
TABLES = (SHARDS_TABLE, REJECTS_TABLE, DUPLICATES_TABLE)


@pytest.fixture
def target(tmp_path: Path) -> Store:
    """The folder of a dataset of 20 images in two shards."""
    workspace = open_store(str(tmp_path))
    make_dataset(workspace, "tiny", num_samples=20, max_samples=10, size=8)
    return open_store(f"{workspace.uri}/datasets/tiny")


def planted(tmp_path: Path) -> tuple[Store, DatasetCard]:
    """20 pictures of which some have no label or several, 3 that are rejected in listing or sharding, 2 duplicates."""
    images: dict[str, bytes | None] = {f"{at}.png": png(noise(5, 6, at)) for at in range(20)}
    images |= {"x": b"junk", "y": None}
    labels = {"0.png": [0], "1.png": [0, 1], **{f"{at}.png": [at % 3] for at in range(3, 20)}}
    listed = corpus_of(images, labels, ("a", "b", "c"), (Reject("z", "unreadable"),))
    rows = [{"origin": f"copy-{at}", "reason": "same-file", "of": "0.png", "labels_differ": False} for at in range(2)]
    duplicates = DiskTable.of(pa.Table.from_pylist(rows, schema=DUPLICATES_SCHEMA))
    corpus = Corpus(listed.entries, listed.classes, listed.reader, listed.rejects, duplicates)
    workspace = open_store(str(tmp_path))
    card = shard_corpus(workspace, "planted", corpus, ShardRecipe(max_samples=8))
    return open_store(f"{workspace.uri}/datasets/planted"), card


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_whole_dataset_passes(target: Store, depth: Depth) -> None:
    assert problems_of(target, depth) == []


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_totals_agree_with_what_was_planted(tmp_path: Path, depth: Depth) -> None:
    target, card = planted(tmp_path)
    assert (card.num_input, card.num_samples, card.num_rejected, card.num_duplicates) == (25, 20, 3, 2)
    rejects = {row["origin"]: row["reason"] for row in pq.read_table(target.local_path(REJECTS_TABLE)).to_pylist()}
    assert rejects == {"x": "not-an-image", "y": "null-image", "z": "unreadable"}
    assert card.statistics.num_multi_label == 1
    assert sum(card.statistics.label_counts) == 20  # one has two labels, one none
    assert problems_of(target, depth) == []


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("check", ["header", "full"])
def test_headers_and_resized_images_pass_too(tmp_path: Path, check: str, depth: Depth) -> None:
    """Their cards hold no colours, or those of the originals: not what is stored has."""
    workspace = open_store(str(tmp_path))
    images: dict[str, bytes | None] = {f"{at}.png": png(noise(40, 60, at)) for at in range(6)}
    corpus = corpus_of(images, {}, ())
    resize = {"mode": "short", "size": 16} if check == "full" else {}
    recipe = ShardRecipe.model_validate({"check": check, "resize": resize})
    card = shard_corpus(workspace, "other", corpus, recipe)
    assert (card.statistics.channel_mean is None) == (check == "header")
    assert problems_of(open_store(f"{workspace.uri}/datasets/other"), depth) == []


@pytest.mark.parametrize("depth", BELOW_FAST)
@pytest.mark.parametrize("part", ["header", "image", "label header", "label"])
def test_a_flip_in_a_sample_is_told_with_the_sample(target: Store, part: str, depth: Depth) -> None:
    row = index_rows(target, 1)[3]
    places = {
        "header": row["image_offset"] - 500,
        "image": row["image_offset"] + row["image_bytes"] // 2,
        "label header": row["label_offset"] - 500,
        "label": row["label_offset"],
    }
    flip(target, "shard-000001.tar", places[part])
    problems = problems_of(target, depth)
    assert files_of(problems) == {"shard-000001.tar"}
    assert "damaged" in problems[0]
    assert f"sample {row['key']} at byte {row['image_offset']}" in problems[1]
    assert len(problems) == 2


@pytest.mark.parametrize("depth", BELOW_FAST)
@pytest.mark.parametrize("name", ["shard-000000.parquet", *TABLES])
def test_a_flip_in_an_index_or_a_table_is_told(target: Store, name: str, depth: Depth) -> None:
    size = len(target.read(name))
    for at in (0, size // 2, size - 1):
        whole = target.read(name)
        flip(target, name, at)
        assert files_of(problems_of(target, depth)) == {name}
        target.put(name, whole)


@pytest.mark.parametrize("name", TABLES)
def test_the_fast_depth_digests_tables(target: Store, name: str) -> None:
    flip(target, name, 10)
    assert files_of(problems_of(target, "fast")) == {name}


def test_a_flip_at_any_byte_of_a_shard_is_found(tmp_path: Path) -> None:
    """Also in what no sample owns: padding, and the blocks at the end."""
    workspace = open_store(str(tmp_path))
    make_dataset(workspace, "two", num_samples=2, max_samples=2, size=4)
    target = open_store(f"{workspace.uri}/datasets/two")
    (shard,) = pq.read_table(target.local_path(SHARDS_TABLE)).to_pylist()
    entry, path = ShardEntry.model_validate(shard), tmp_path / "datasets" / "two" / shard["name"]
    whole = path.read_bytes()
    bits = generator(7, "bits").integers(0, 8, len(whole))
    for at in range(int(bits[0]), len(whole), 13):
        path.write_bytes(flipped(whole, at, int(bits[at])))
        assert files_of(check_shard(target, entry, "bytes")) == {entry.name}, at
    path.write_bytes(whole)
    assert check_shard(target, entry, "bytes") == []


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000001.parquet", *TABLES])
def test_a_missing_file_is_told(target: Store, name: str, depth: Depth) -> None:
    target.delete(name)
    assert problems_of(target, depth) == [f"{name}: missing"]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("size", [0, 511, 10_240, -1])
def test_a_cut_shard_is_told(target: Store, size: int, depth: Depth) -> None:
    data = target.read("shard-000001.tar")
    target.put("shard-000001.tar", data[:size])
    problems = problems_of(target, depth)
    assert problems == [f"shard-000001.tar: {len(data[:size])} bytes, shards.parquet says {len(data)}"]


@pytest.mark.parametrize("depth", BELOW_FAST)
@pytest.mark.parametrize("size", [0, 4, 1_000, -1])
def test_a_cut_index_is_told(target: Store, size: int, depth: Depth) -> None:
    target.put("shard-000001.parquet", target.read("shard-000001.parquet")[:size])
    assert files_of(problems_of(target, depth)) == {"shard-000001.parquet"}


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_damaged_file_is_told_not_only_the_first(target: Store, depth: Depth) -> None:
    target.delete("shard-000000.tar")
    target.delete("shard-000000.parquet")
    target.put("shard-000001.tar", b"")
    target.delete("shard-000001.parquet")
    target.delete(REJECTS_TABLE)
    expected = {"shard-000000.tar", "shard-000000.parquet", "shard-000001.tar", "shard-000001.parquet", REJECTS_TABLE}
    assert files_of(problems_of(target, depth)) == expected


@pytest.mark.parametrize("depth", BELOW_FAST)
def test_shards_swapped_between_datasets_are_told(tmp_path: Path, depth: Depth) -> None:
    """Same names, same sizes, whole by themselves; but another dataset's."""
    workspace = open_store(str(tmp_path))
    stores = []
    for seed in (1, 2):
        make_dataset(workspace, f"set-{seed}", num_samples=6, max_samples=3, size=8, seed=seed)
        stores.append(open_store(f"{workspace.uri}/datasets/set-{seed}"))
    both = [store.read("shard-000000.tar") for store in stores]
    for store, other in zip(stores, reversed(both), strict=True):
        store.put("shard-000000.tar", other)
        assert files_of(problems_of(store, depth)) == {"shard-000000.tar"}
    both = [store.read("shard-000000.parquet") for store in stores]
    for store, other in zip(stores, reversed(both), strict=True):
        store.put("shard-000000.parquet", other)
        assert files_of(problems_of(store, depth)) == {"shard-000000.tar", "shard-000000.parquet"}


@pytest.mark.parametrize("depth", BELOW_FAST)
def test_shards_of_one_dataset_that_changed_places_are_told(target: Store, depth: Depth) -> None:
    first, second = (target.read(f"shard-00000{number}.tar") for number in range(2))
    target.put("shard-000000.tar", second)
    target.put("shard-000001.tar", first)
    assert files_of(problems_of(target, depth)) == {"shard-000000.tar", "shard-000001.tar"}


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_card_of_another_dataset_fits_nothing(tmp_path: Path, depth: Depth) -> None:
    target, _ = planted(tmp_path)
    make_dataset(open_store(str(tmp_path)), "other", num_samples=5, size=8)
    target.put(CARD, open_store(str(tmp_path / "datasets/other")).read(CARD))
    assert files_of(problems_of(target, depth)) == set(TABLES)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("num_input", "dataset.json: input 21 is not written 20 + rejected 0 + duplicates 0"),
        ("num_samples", "dataset.json: input 20 is not written 21 + rejected 0 + duplicates 0"),
        ("num_rejected", "rejects.parquet: 0 rows, the card says 1"),
        ("num_duplicates", "duplicates.parquet: 0 rows, the card says 1"),
        ("num_shards", "shards.parquet: 2 shards, the card says 3"),
        ("num_bytes", "shards.parquet: the shards' bytes do not add up to the card's"),
    ],
)
def test_counts_that_do_not_add_up_are_told(target: Store, field: str, told: str, depth: Depth) -> None:
    edit_card(target, lambda card: card.update({field: card[field] + 1}))
    assert any(problem.startswith(told) for problem in problems_of(target, depth))


@pytest.mark.parametrize("depth", DEPTHS)
def test_counts_that_fit_each_other_and_not_the_shards_are_told(target: Store, depth: Depth) -> None:
    edit_card(target, lambda card: card.update(num_samples=21, num_input=21))
    assert "shards.parquet: the shards' samples do not add up to the card's 21" in problems_of(target, depth)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("formats", {"png": 19}, "its formats do not add up to 20 samples"),
        ("short_sides", {"8": 20, "16": 1}, "its short_sides do not add up to 20 samples"),
        ("aspects", {}, "its aspects do not add up to 20 samples"),
        ("label_counts", [20], "counts 1 classes, names 4"),
    ],
)
def test_statistics_that_do_not_add_up_are_told(target: Store, field: str, value: Any, told: str, depth: Depth) -> None:
    edit_card(target, lambda card: card["statistics"].update({field: value}))
    assert problems_of(target, depth) == [f"dataset.json: {told}"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_another_dataset_digest_is_told(target: Store, depth: Depth) -> None:
    edit_card(target, lambda card: card.update(digest="0" * 64))
    assert problems_of(target, depth) == ["shards.parquet: the shards' digests do not give the card's dataset digest"]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("left_out", [TABLES, TABLES[:1], TABLES[1:]])
def test_a_card_that_names_no_tables_does_not_pass(target: Store, left_out: tuple[str, ...], depth: Depth) -> None:
    edit_card(target, lambda card: [card["tables"].pop(name) for name in left_out])
    assert sorted(problems_of(target, depth)) == sorted(f"{CARD}: names no digest of {name}" for name in left_out)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("row", [{"num_samples": None}, {"index_sha256": None}])
def test_a_table_whose_rows_are_no_shards_is_told(target: Store, row: dict[str, Any], depth: Depth) -> None:
    rows = pq.read_table(io.BytesIO(target.read(SHARDS_TABLE))).to_pylist()
    seal_table(target, [rows[0], rows[1] | row])
    assert problems_of(target, depth) == [f"{SHARDS_TABLE}: its rows do not name shards"]


def test_the_depths_differ_in_what_they_read(target: Store) -> None:
    """A flip in a shard: nothing that the fast depth looks at. One in a label with digests that fit: only full."""
    flip(target, "shard-000000.tar", 600)
    assert problems_of(target, "fast") == []
    assert files_of(problems_of(target, "bytes")) == {"shard-000000.tar"}


def test_without_a_card_there_is_no_dataset(target: Store) -> None:
    target.delete(CARD)
    with pytest.raises(FileNotFoundError):
        problems_of(target, "fast")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "has schema version None"),
        (b"null", "has schema version None"),
        (b'{"schema_version": 1}', "has schema version 1, this vitpipe reads 2"),
        (b'{"schema_version": 3}', "has schema version 3, this vitpipe reads 2"),
        (b'{"schema_version": 2}', "field 'name': Field required"),
    ],
)
def test_a_damaged_card_is_told_by_name(target: Store, damage: bytes, told: str) -> None:
    target.put(CARD, damage)
    with pytest.raises(DamageError) as caught:
        problems_of(target, "fast")
    assert str(caught.value).startswith(f"{target.uri}/{CARD}")
    assert told in str(caught.value)


def test_a_card_that_was_cut_anywhere_is_told(target: Store) -> None:
    whole = target.read(CARD)
    for size in range(0, len(whole) - 2, 97):
        target.put(CARD, whole[:size])
        with pytest.raises(DamageError, match=r"dataset\.json is not valid JSON"):
            problems_of(target, "fast")
