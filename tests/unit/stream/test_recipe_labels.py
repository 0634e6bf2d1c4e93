"""Labels of a batch: one class, many, none; samples whose labels do not fit are replaced like damaged ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.images.transforms import EvaluationTransform
from pipeline.shard.recipe import ShardRecipe
from pipeline.stream.batch import BatchArrays, SlotLayout, copied, open_readers
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.eval_loader import evaluation_batches, padded_batches
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.stream.recipe import AugmentRecipe, LabelEncoder, StreamRecipe
from tests.support.datasets import corpus_of, shard_corpus
from tests.support.pictures import noise, png

CLASSES = 11  # of which the last bits of a byte pair are not used
RECIPE = StreamRecipe(batch_size=8, partitions=4, window=6, augment=AugmentRecipe(size=4))
LISTS: list[list[int]] = [[3], [0, 10], [], [7, 8, 9], [10], [5], [1, 2], [4]] * 3


def dataset(folder: Path, lists: list[list[int]], num_classes: int = CLASSES) -> Store:
    """Dataset ``d`` with a sample for each of *lists*."""
    workspace = open_store(str(folder))
    pictures: dict[str, bytes | None] = {f"{at:03}": png(noise(4, 4, at)) for at in range(len(lists))}
    labels = {f"{at:03}": wanted for at, wanted in enumerate(lists)}
    corpus = corpus_of(pictures, labels, tuple(f"c{label}" for label in range(num_classes)))
    shard_corpus(workspace, "d", corpus, ShardRecipe(max_samples=7))
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With none, one and several labels. Not to be changed."""
    return dataset(tmp_path_factory.mktemp("labels"), LISTS)


def loader_of(workspace: Store, world: World | None = None, **fields: Any) -> StreamLoader:
    """Over dataset ``d``."""
    given_to_loader = {name: fields.pop(name) for name in ("labels", "num_classes", "on_message") if name in fields}
    recipe, world = RECIPE.model_copy(update=fields), world or World()
    return StreamLoader(open_readers(workspace, ["d"], recipe, world), recipe, seed=1, world=world, **given_to_loader)


def take(loader: StreamLoader, count: int) -> list[Batch]:
    """The next *count* batches."""
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def lists_in(workspace: Store, batch: Batch) -> list[tuple[int, ...]]:
    """What the index says of each sample of *batch*."""
    reader = DatasetReader(workspace, "d")
    return [reader.member(int(shard), int(row)).labels for shard, row in batch.origins[2:4].T]


@pytest.mark.parametrize("workers", [0, 2])
def test_many_labels_come_as_a_matrix(workspace: Store, workers: int) -> None:
    for batch in take(loader_of(workspace, labels="many", workers=workers), 4):
        assert (batch.labels.shape, batch.labels.dtype) == ((8, CLASSES), torch.float32)
        found = [tuple(row.nonzero().flatten().tolist()) for row in batch.labels]
        assert found == lists_in(workspace, batch)
        assert set(batch.labels.unique().tolist()) == {0.0, 1.0}
        assert batch.replaced == ()


def test_many_labels_are_equal_at_every_world_size(workspace: Store) -> None:
    def by_position(batches: list[Batch]) -> dict[int, list[float]]:
        return {at: row.tolist() for batch in batches for at, row in zip(batch.positions, batch.labels, strict=True)}

    alone = by_position(take(loader_of(workspace, labels="many"), 3))
    ranks = [by_position(take(loader_of(workspace, World(rank, 2), labels="many"), 3)) for rank in range(2)]
    assert ranks[0] | ranks[1] == alone


@pytest.mark.parametrize("workers", [0, 1])
def test_without_labels_none_is_read(workspace: Store, workers: int) -> None:
    for batch in take(loader_of(workspace, labels="none", workers=workers), 3):
        assert batch.labels.tolist() == [-1] * 8
        assert batch.labels.dtype == torch.int64
        assert batch.replaced == ()


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_without_exactly_one_label_are_replaced_by_the_next_of_their_slot(
    workspace: Store, workers: int
) -> None:
    said: list[str] = []
    batches = take(loader_of(workspace, max_damaged=24, workers=workers, on_message=said.append), 6)
    bad = sum(len(wanted) != 1 for wanted in LISTS)
    for batch in batches:
        lists = lists_in(workspace, batch)
        assert batch.labels.tolist() == [labels[0] for labels in lists]
        assert {len(labels) for labels in lists} == {1}
    reasons = [one.reason for batch in batches for one in batch.replaced]
    assert {reason.split(";")[0] for reason in reasons} == {f"it has {count} labels" for count in (0, 2, 3)}
    assert len({one.sample for batch in batches for one in batch.replaced}) == len(said) == bad
    positions = [position for batch in batches for position in batch.positions]
    assert positions == list(range(48))


def test_more_of_them_than_are_allowed_end_the_stream(workspace: Store) -> None:
    bad = sum(len(wanted) != 1 for wanted in LISTS)
    with pytest.raises(DamageError, match=rf"{bad} damaged samples: d/shard-\d+\.tar: sample \w+ at byte \d+: it has"):
        take(loader_of(workspace, max_damaged=bad - 1), 6)


@pytest.mark.parametrize("mode", ["one", "many"])
def test_a_class_that_does_not_exist_is_damage(tmp_path: Path, mode: str) -> None:
    """Index and card contradict each other; a loss would fail on it, or worse."""
    workspace = dataset(tmp_path, [[at] for at in range(CLASSES)])
    with pytest.raises(DamageError, match=r"its label 10 is none of the 10 classes"):
        take(loader_of(workspace, labels=mode, num_classes=10), 4)
    said: list[str] = []
    take(loader_of(workspace, labels=mode, num_classes=10, max_damaged=1, on_message=said.append), 4)
    assert len(said) == 1


def test_a_dataset_without_classes_is_refused_at_once_but_for_none(tmp_path: Path) -> None:
    workspace = dataset(tmp_path, [[]] * 8, num_classes=0)
    for mode in ("one", "many"):
        with pytest.raises(InputError, match="dataset d has no classes"):
            loader_of(workspace, labels=mode)
    (batch,) = take(loader_of(workspace, labels="none"), 1)
    assert batch.labels.tolist() == [-1] * 8


def test_evaluation_gets_all_labels_of_each_sample(workspace: Store) -> None:
    reader, transform = DatasetReader(workspace, "d"), EvaluationTransform(size=4, resize=4)
    sizes = reader.shards.sizes.tolist()
    expected = [reader.member(shard, row).labels for shard, size in enumerate(sizes) for row in range(size)]
    batches = list(evaluation_batches(reader, transform, 5))
    assert [labels for batch in batches for labels in batch.label_lists] == expected
    assert [label for batch in batches for label in batch.labels.tolist()] == [(*wanted, -1)[0] for wanted in expected]
    padded = list(padded_batches(reader, transform, 5, World(1, 2)))
    for batch in padded:
        assert len(batch.label_lists) == 5
        assert [labels for labels, valid in zip(batch.label_lists, batch.valid, strict=True) if not valid] == [
            ()
        ] * int((~batch.valid).sum())


@given(
    st.integers(1, 200).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.sets(st.integers(0, k - 1)), max_size=9)))
)
def test_bits_hold_every_set_of_classes(case: tuple[int, list[set[int]]]) -> None:
    num_classes, wanted = case
    labelling = LabelEncoder("many", num_classes)
    arrays = BatchArrays.empty(len(wanted), 2, labelling.num_bytes)
    arrays.bits[:] = 255  # memory that was used before
    for at, labels in enumerate(wanted):
        assert labelling.fault(tuple(labels)) == ""
        labelling.put(tuple(labels), arrays.labels, arrays.bits, at)
    found = labelling.multi_hot(arrays.bits)
    assert found.shape == (len(wanted), num_classes)
    assert [set(np.flatnonzero(row).tolist()) for row in found] == wanted


@pytest.mark.parametrize(("mode", "num_bytes"), [("one", 0), ("none", 0), ("many", 2)])
def test_slots_grow_by_the_bits_alone(mode: Any, num_bytes: int) -> None:
    labelling = LabelEncoder(mode, CLASSES)
    assert labelling.num_bytes == num_bytes
    assert BatchArrays.num_bytes(8, 4, num_bytes) == BatchArrays.num_bytes(8, 4) + 8 * num_bytes
    arrays = BatchArrays.empty(8, 4, num_bytes)
    assert arrays.bits.shape == (8, num_bytes)
    arrays.images[:] = 1
    arrays.labels[:] = 2
    arrays.origins[:] = 3
    arrays.bits[:] = 4
    assert (arrays.images == 1).all()
    assert (arrays.labels == 2).all()
    assert (arrays.origins == 3).all()
    for name, array in vars(copied(arrays)).items():
        np.testing.assert_array_equal(array, getattr(arrays, name))
        assert not np.shares_memory(array, getattr(arrays, name)), "a slot is built in again"
    assert SlotLayout(2, 8, 32, 4096).slot_bytes >= SlotLayout(2, 8, 32).slot_bytes + 8 * 4096


@pytest.mark.parametrize("labels", [(-1,), (11,), (3, 99)])
def test_labels_beyond_the_classes_are_a_fault(labels: tuple[int, ...]) -> None:
    assert "none of the 11 classes" in LabelEncoder("many", CLASSES).fault(labels)
    assert LabelEncoder("none", CLASSES).fault(labels) == ""
