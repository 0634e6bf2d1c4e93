"""Damaged samples: found when they are read, told by shard, key and offset, replaced by a fixed rule."""

from __future__ import annotations

import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.images.transforms import EvaluationTransform
from pipeline.stream.dataset import DatasetReader, SampleDamagedError
from pipeline.stream.eval_loader import evaluation_batches
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.stream.order import Order
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.support.datasets import make_dataset

RECIPE = StreamRecipe(batch_size=8, partitions=4, window=6, augment=AugmentRecipe(size=16, crop="none", flip=False))


@pytest.fixture
def workspace(tmp_path: Path) -> Store:
    """A workspace of its own with dataset ``tiny``: 40 images in four shards."""
    store = open_store(str(tmp_path))
    make_dataset(store, "tiny", num_samples=40, size=16, max_samples=10)
    return store


def row_of(workspace: Store, shard: int, row: int) -> dict[str, Any]:
    """A row of an index."""
    data = workspace.read(f"datasets/tiny/shard-{shard:06d}.parquet")
    found: dict[str, Any] = pq.read_table(io.BytesIO(data)).to_pylist()[row]
    return found


def flip(workspace: Store, key: str, at: int) -> None:
    """Turn one bit of a stored object."""
    data = bytearray(workspace.read(key))
    data[at] ^= 1
    workspace.put(key, bytes(data))


def damage(workspace: Store, shard: int, row: int, part: str = "bytes") -> str:
    """Flip one bit of a sample; how it will be told."""
    facts = row_of(workspace, shard, row)
    within = facts["image_bytes"] // 2 if part == "bytes" else 5 - 512
    flip(workspace, f"datasets/tiny/shard-{shard:06d}.tar", facts["image_offset"] + within)
    return f"shard-{shard:06d}.tar: sample {facts['key']} at byte {facts['image_offset']}"


def order_of(workspace: Store) -> Order:
    """The order of the loader below."""
    reader = DatasetReader(workspace, "tiny")
    sizes = [shard.num_samples for shard in reader.shards]
    return Order(sizes, reader.card.digest, seed=0, partitions=4, window=6)


def take(workspace: Store, count: int, **fields: Any) -> list[Batch]:
    """The first *count* batches."""
    recipe = RECIPE.model_copy(update=fields)
    reader = DatasetReader(workspace, "tiny", check=recipe.check)
    return list(itertools.islice(StreamLoader(reader, recipe, seed=0, world=World()), count))


@pytest.mark.parametrize("part", ["bytes", "header"])
def test_a_flipped_bit_is_told_with_shard_key_and_offset(workspace: Store, part: str) -> None:
    told = damage(workspace, 2, 5, part)
    reader = DatasetReader(workspace, "tiny")
    with pytest.raises(SampleDamagedError, match=told):
        reader.read(2, 5)
    assert reader.read(2, 4).key == row_of(workspace, 2, 4)["key"]


def test_the_header_check_alone_sees_headers_only(workspace: Store) -> None:
    damage(workspace, 0, 0, "bytes")
    told = damage(workspace, 0, 1, "header")
    reader = DatasetReader(workspace, "tiny", check="header")
    assert reader.read(0, 0).key == row_of(workspace, 0, 0)["key"]
    with pytest.raises(SampleDamagedError, match=told):
        reader.read(0, 1)


def test_a_cut_shard_is_told(workspace: Store) -> None:
    key = "datasets/tiny/shard-000001.tar"
    last = row_of(workspace, 1, 9)
    workspace.put(key, workspace.read(key)[: last["image_offset"] + 5])
    reader = DatasetReader(workspace, "tiny")
    assert reader.read(1, 8).key == row_of(workspace, 1, 8)["key"]
    with pytest.raises(SampleDamagedError, match=f"shard-000001.tar: sample {last['key']}"):
        reader.read(1, 9)


def test_without_leave_a_damaged_sample_stops_the_stream(workspace: Store) -> None:
    ref = order_of(workspace).ref(13)
    told = damage(workspace, ref.shard, ref.row)
    assert len(take(workspace, 1)) == 1
    with pytest.raises(DamageError, match=told) as caught:
        take(workspace, 2)
    assert "stream.max_damaged" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_damaged_sample_is_replaced_by_the_next_of_its_slot_and_counted(workspace: Store) -> None:
    calm = take(workspace, 5)
    ref = order_of(workspace).ref(13)
    told = damage(workspace, ref.shard, ref.row)
    shaken = take(workspace, 5, max_damaged=1)
    assert [len(batch.replaced) for batch in shaken] == [0, 1, 0, 0, 0]
    (one,) = shaken[1].replaced
    assert (one.position, one.reason, str(one)) == (13, "its bytes are damaged", f"tiny/{told}: its bytes are damaged")
    assert [batch.origins[4].tolist() for batch in shaken[:2]] == [[0] * 8, [0] * 5 + [1] + [0] * 2]
    for ours, theirs in zip(shaken, calm, strict=True):
        assert ours.positions == theirs.positions
        for at, position in enumerate(ours.positions):
            wanted = (calm[2], 1) if position == 13 else (theirs, at)  # position 17 = 13 + 4 is in batch 2, at 1
            assert ours.images[at].equal(wanted[0].images[wanted[1]])
            assert ours.labels[at] == wanted[0].labels[wanted[1]]


def test_the_replacement_may_be_damaged_as_well(workspace: Store) -> None:
    calm, order = take(workspace, 5), order_of(workspace)
    for position in (13, 17):
        ref = order.ref(position)
        damage(workspace, ref.shard, ref.row)
    shaken = take(workspace, 5, max_damaged=2)
    assert [len(batch.replaced) for batch in shaken] == [0, 2, 1, 0, 0]
    assert shaken[1].images[5].equal(calm[2].images[5])  # position 21
    with pytest.raises(DamageError):
        take(workspace, 5, max_damaged=1)


def test_more_damaged_samples_than_allowed_stop_the_stream(workspace: Store) -> None:
    order = order_of(workspace)
    told = [damage(workspace, order.ref(position).shard, order.ref(position).row) for position in (2, 9)]
    assert len(take(workspace, 1, max_damaged=1)) == 1
    with pytest.raises(DamageError, match=f"2 damaged samples: tiny/{told[1]}"):
        take(workspace, 2, max_damaged=1)


def test_a_damaged_sample_counts_once_however_often_it_is_met(workspace: Store) -> None:
    ref = order_of(workspace).ref(13)
    damage(workspace, ref.shard, ref.row)
    assert sum(len(batch.replaced) for batch in take(workspace, 15, max_damaged=1)) == 3  # three epochs


def test_damage_that_only_the_decoder_sees_is_told_with_its_sample(workspace: Store) -> None:
    ref = order_of(workspace).ref(0)
    facts = row_of(workspace, ref.shard, ref.row)
    flip(workspace, f"datasets/tiny/shard-{ref.shard:06d}.tar", facts["image_offset"])
    with pytest.raises(DamageError, match=f"shard-{ref.shard:06d}.tar: sample {facts['key']} at byte .*: not-an-image"):
        take(workspace, 1, check="header")


@pytest.mark.parametrize("name", ["shards.parquet", "shard-000001.parquet"])
def test_damaged_tables_and_indexes_are_told_by_name(workspace: Store, name: str) -> None:
    flip(workspace, f"datasets/tiny/{name}", 30)
    with pytest.raises(DamageError, match=f"{name} is damaged"):
        DatasetReader(workspace, "tiny").read(1, 0)


def test_a_missing_shard_is_told_by_name(workspace: Store) -> None:
    workspace.delete("datasets/tiny/shard-000001.tar")
    with pytest.raises(DamageError, match=r"shard-000001\.tar is missing"):
        DatasetReader(workspace, "tiny").read(1, 0)


def test_a_missing_dataset_is_refused_by_name(workspace: Store) -> None:
    with pytest.raises(InputError, match="no dataset 'other'") as caught:
        DatasetReader(workspace, "other")
    assert caught.value.exit_code == 2


def test_an_evaluation_does_not_pass_over_damage(workspace: Store) -> None:
    told = damage(workspace, 3, 9)
    with pytest.raises(DamageError, match=told):
        list(evaluation_batches(DatasetReader(workspace, "tiny"), EvaluationTransform(size=16, resize=16), 8))


def test_an_evaluation_names_a_sample_that_cannot_be_decoded(workspace: Store) -> None:
    """Its bytes are those that were written, of an image that nobody had decoded: no digest tells."""
    facts = row_of(workspace, 2, 4)
    flip(workspace, "datasets/tiny/shard-000002.tar", facts["image_offset"] + 1)  # of the PNG's signature
    reader = DatasetReader(workspace, "tiny", check="header")
    with pytest.raises(DamageError, match=rf"shard-000002\.tar: sample {facts['key']} at byte .*not-an-image"):
        list(evaluation_batches(reader, EvaluationTransform(size=16, resize=16), 8))


def test_a_reader_that_was_used_can_be_sent_to_another_process(workspace: Store) -> None:
    reader = DatasetReader(workspace, "tiny")
    wanted = reader.read(2, 3)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(2, 3) == wanted
    reader.close()
    assert copy.read(2, 4).key != wanted.key
    assert reader.read(2, 3) == wanted
