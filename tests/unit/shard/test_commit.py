"""The end of the stage: tables, statistics, the create-only card, and how many rejects are too many."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import DiskTable
from pipeline.base.errors import ConflictError, DamageError, TooManyRejectsError
from pipeline.base.store import Store, open_store
from pipeline.records.corpus import DUPLICATES_SCHEMA, Reject, rejects_table
from pipeline.records.dataset import CARD, DatasetCard, ShardEntry, dataset_digest, read_dataset_card
from pipeline.records.record import parse_record
from pipeline.shard.commit import fingerprint_dataset, publish, put_tables, read_shards, sweep
from pipeline.shard.recipe import ShardRecipe
from tests.support.datasets import corpus_of, make_dataset, random_corpus, shard_corpus
from tests.support.pictures import bmp, noise, png


@pytest.fixture
def workspace(tmp_path: Path) -> Store:
    """An empty workspace."""
    return open_store(str(tmp_path / "workspace"))


def dataset_store(workspace: Store, name: str = "tiny") -> Store:
    """The folder of a dataset."""
    return open_store(f"{workspace.uri}/datasets/{name}")


def test_the_card_adds_up(workspace: Store) -> None:
    card = make_dataset(workspace, "tiny", num_samples=50, num_classes=3, max_samples=16)
    assert read_dataset_card(workspace, "tiny") == card
    assert (card.num_input, card.num_samples, card.num_rejected, card.num_shards) == (50, 50, 0, 4)
    assert card.statistics.label_counts == (17, 17, 16)
    assert card.statistics.formats == {"png": 50}
    target = dataset_store(workspace)
    tars = [target.read(f"shard-{number:06d}.tar") for number in range(4)]
    assert card.num_bytes == sum(map(len, tars))
    assert card.digest == dataset_digest([sha256_hex(tar) for tar in tars])
    assert {name: sha256_hex(target.read(name)) for name in card.tables} == card.tables
    assert set(card.tables) == {"shards.parquet", "rejects.parquet", "duplicates.parquet"}


def test_the_card_and_all_files_are_the_same_wherever_they_are_made(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        workspace = open_store(str(tmp_path / name))
        make_dataset(workspace, "tiny", num_samples=30)
        contents.append({info.key: sha256_hex(workspace.read(info.key)) for info in workspace.list()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2 * 2 + 4


def test_a_copy_of_the_source_gives_the_same_card_and_files(tmp_path: Path) -> None:
    """Its files have other inodes and times, so other etags; their bytes are equal."""
    contents = []
    for copy in ("one", "two"):
        corpus = random_corpus(30, 4)
        table = corpus.entries.table()
        etags = pa.array([f"{copy} {number}" for number in range(table.num_rows)])
        table = table.set_column(table.schema.get_field_index("etag"), "etag", etags)
        workspace = open_store(str(tmp_path / copy))
        shard_corpus(workspace, "tiny", replace(corpus, entries=DiskTable.of(table)), ShardRecipe(max_samples=16))
        contents.append({info.key: sha256_hex(workspace.read(info.key)) for info in workspace.list()})
    assert contents[0] == contents[1]


def test_the_card_names_no_place(workspace: Store) -> None:
    make_dataset(workspace, "tiny", num_samples=5)
    assert b"/" not in dataset_store(workspace).read(CARD)


def test_statistics_cover_all_shards(workspace: Store) -> None:
    images: dict[str, bytes | None] = {
        "a": png(noise(3, 9)),
        "b": bmp(noise(5, 2)),
        "c": png(noise(8, 4)),
        "d": b"junk",
    }
    labels = {"a": [1], "b": [], "c": [0, 1]}
    corpus = corpus_of(images, labels, ("x", "y", "z"))
    card = shard_corpus(workspace, "mixed", corpus, ShardRecipe(max_samples=1))
    facts = card.statistics
    assert facts.label_counts == (1, 2, 0)
    assert facts.formats == {"bmp": 1, "png": 2}
    assert (facts.width_min, facts.width_max, facts.height_min, facts.height_max) == (2, 9, 3, 8)
    assert (card.num_samples, card.num_rejected, card.num_shards) == (3, 1, 3)


def test_the_tables_are_kept_with_their_digests(workspace: Store) -> None:
    rejects = rejects_table([Reject("b", "empty"), Reject("a", "truncated", "cut at 5")])
    copies = pa.Table.from_pylist(
        [{"origin": "c", "reason": "same-file", "of": "a", "labels_differ": False}], schema=DUPLICATES_SCHEMA
    )
    digests = put_tables(workspace, [], [rejects], [copies], {})
    assert digests == {name: sha256_hex(workspace.read(name)) for name in digests}
    assert pq.read_table(io.BytesIO(workspace.read("rejects.parquet"))) == rejects
    assert pq.read_table(io.BytesIO(workspace.read("duplicates.parquet"))) == copies
    assert put_tables(workspace, [], [rejects], [copies], digests) == digests


def test_tables_that_come_out_otherwise_replace_nothing(workspace: Store) -> None:
    digests = put_tables(workspace, [], [rejects_table([Reject("a", "empty")])], [], {})
    before = {name: workspace.read(name) for name in digests}
    with pytest.raises(DamageError, match=r"rejects\.parquet cannot be made again"):
        put_tables(workspace, [], [rejects_table([Reject("b", "empty")])], [], digests)
    assert {info.key: workspace.read(info.key) for info in workspace.list()} == before


def test_sweeping_leaves_what_the_card_names(workspace: Store) -> None:
    card = make_dataset(workspace, "tiny", num_samples=20, max_samples=10)
    target = dataset_store(workspace)
    named = {info.key for info in target.list()}
    for key in ("work/plan-00000.bin", "shard-000007.parquet", "shard-000009.tar"):
        target.put(key, b"left behind")
    target.put("notes.txt", b"a person's")
    assert sweep(target, read_shards(target, card)) == 3
    assert {info.key for info in target.list()} == named | {"notes.txt"}


def test_publishing_the_same_card_twice_is_no_conflict(workspace: Store) -> None:
    card = make_dataset(workspace, "tiny", num_samples=5)
    before = dataset_store(workspace).head(CARD)
    assert publish(dataset_store(workspace), card) == card
    assert dataset_store(workspace).head(CARD) == before


def test_publishing_another_card_is_a_conflict_that_names_the_difference(workspace: Store) -> None:
    card = make_dataset(workspace, "tiny", num_samples=5)
    stored = dataset_store(workspace).read(CARD)
    with pytest.raises(ConflictError, match=r"num_rejected: 0 -> 7") as caught:
        publish(dataset_store(workspace), card.model_copy(update={"num_rejected": 7}))
    assert caught.value.exit_code == 1
    assert dataset_store(workspace).read(CARD) == stored


@pytest.mark.parametrize("cut", [0, 1, 20, -3])
def test_a_cut_card_is_damage(workspace: Store, cut: int) -> None:
    make_dataset(workspace, "tiny", num_samples=5)
    data = dataset_store(workspace).read(CARD)[:cut]
    with pytest.raises(DamageError, match="the card"):
        parse_record(DatasetCard, data, "the card")


@pytest.mark.parametrize(
    ("num_rejected", "num_input", "recipe", "passes"),
    [
        (0, 100, {}, True),
        (10, 100, {}, True),  # ten are tolerated whatever the ratio
        (11, 100, {}, False),
        (11, 1_100, {}, True),  # exactly one per cent
        (12, 1_100, {}, False),
        (1, 10, {"tolerated_rejects": 0, "max_reject_ratio": 0.0}, False),
        (1, 10, {"tolerated_rejects": 0, "max_reject_ratio": 0.1}, True),
        (5, 5, {}, False),  # all of them, few as they are
        (5, 5, {"max_reject_ratio": 1.0}, False),
        (4, 5, {"max_reject_ratio": 1.0}, True),
    ],
)
def test_how_many_rejects_fail_the_stage(
    workspace: Store, num_rejected: int, num_input: int, recipe: dict, passes: bool
) -> None:
    from pipeline.shard.stage import ShardProgress, ShardRequest, check_rejects

    rejects = [Reject(f"image {at:03d}", "empty" if at % 2 else "truncated") for at in reversed(range(num_rejected))]
    images: dict[str, bytes | None] = {str(at): b"" for at in range(num_input)}
    corpus, plain = corpus_of(images, {}, ()), ShardRecipe(**recipe)
    work = ShardRequest("x", corpus, plain, workspace, fingerprint_dataset(corpus, plain, {}))
    written = ShardProgress()
    written.add_rejects(0, rejects)
    if num_rejected < num_input:
        written.entries[0] = ShardEntry(name="", num_bytes=1, sha256="", num_samples=1, index_sha256="")
    if passes:
        check_rejects(written, work, ended=True)
        return
    with pytest.raises(TooManyRejectsError) as caught:
        check_rejects(written, work, ended=True)
    assert f"{num_rejected} of {num_input}" in str(caught.value)
    assert "first: image 000" in str(caught.value)
    assert "truncated" in str(caught.value)
    assert caught.value.exit_code == 1
