"""The batches of a rank: the same stream whatever the workers, the world and the interruptions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.base.errors import DamageError, MismatchError, RecipeError, RefusedError
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.images.decode import decode
from pipeline.shard.recipe import ShardRecipe
from pipeline.stream.augment import augment
from pipeline.stream.batch import open_readers
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.stream.order import Order
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.support.datasets import corpus_of, make_dataset, shard_corpus
from tests.support.pictures import noise, png

RECIPE = StreamRecipe(batch_size=8, partitions=4, window=6, augment=AugmentRecipe(size=12))
ALONE = World()
BATCHES = 15  # 120 positions of 50 samples: into the third epoch
Seen = dict[int, tuple[int, bytes]]  # position -> label and pixels
LOADERS: list[StreamLoader] = []  # those of the test that runs


def loader_of(workspace: Store, world: World = ALONE, position: int = 0, seed: int = 7, **fields: Any) -> StreamLoader:
    """A loader over dataset ``tiny``."""
    recipe = RECIPE.model_copy(update=fields)
    loader = StreamLoader(DatasetReader(workspace, "tiny"), recipe, seed=seed, world=world, position=position)
    LOADERS.append(loader)
    return loader


@pytest.fixture(autouse=True)
def _loaders_are_closed() -> Iterator[None]:
    """Whatever becomes of a test."""
    yield
    while LOADERS:
        LOADERS.pop().close()


def seen_in(batches: list[Batch]) -> Seen:
    """Every sample of some batches, by position."""
    rows = [
        (position, (label, image.numpy().tobytes()))
        for batch in batches
        for position, label, image in zip(batch.positions, batch.labels.tolist(), batch.images, strict=True)
    ]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def take(loader: StreamLoader, count: int) -> list[Batch]:
    """The next *count* batches."""
    return list(itertools.islice(loader, count))


def test_a_batch_is_what_the_order_and_the_augmentation_say(tiny_workspace: Store) -> None:
    reader = DatasetReader(tiny_workspace, "tiny")
    sizes = [shard.num_samples for shard in reader.shards]
    order = Order(sizes, reader.card.digest, seed=7, partitions=4, window=6)
    for step, batch in enumerate(take(loader_of(tiny_workspace), BATCHES)):
        assert batch.step == step
        assert batch.positions == tuple(range(8 * step, 8 * step + 8))
        assert (batch.images.shape, batch.images.dtype) == ((8, 3, 12, 12), torch.uint8)
        assert (batch.labels.shape, batch.labels.dtype) == ((8,), torch.int64)
        for at, position in enumerate(batch.positions):
            ref = order.ref(position)
            sample = reader.read(ref.shard, ref.row)
            pixels = augment(decode(sample.data)[0], RECIPE.augment, 7, ref.epoch, sample.key)
            np.testing.assert_array_equal(batch.images[at].numpy(), pixels.transpose(2, 0, 1))
            assert (batch.labels[at].item(),) == sample.labels
        assert batch.replaced == ()


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_together_see_what_one_sees(tiny_workspace: Store, world_size: int) -> None:
    alone = seen_in(take(loader_of(tiny_workspace), BATCHES))
    ranks = [take(loader_of(tiny_workspace, World(rank, world_size)), BATCHES) for rank in range(world_size)]
    assert {len(batch.positions) for batches in ranks for batch in batches} == {8 // world_size}
    together: Seen = {}
    for batches in ranks:
        assert not together.keys() & seen_in(batches).keys()
        together |= seen_in(batches)
    assert together == alone


@pytest.mark.parametrize("stop", [1, 6, 7, 13])
def test_going_on_at_a_position_equals_not_having_stopped(tiny_workspace: Store, stop: int) -> None:
    whole = take(loader_of(tiny_workspace), BATCHES)
    first = loader_of(tiny_workspace)
    take(first, stop)
    state = first.state_dict()
    assert state["position"] == first.position == 8 * stop
    fresh, loaded = loader_of(tiny_workspace, position=8 * stop), loader_of(tiny_workspace)
    loaded.load_state_dict(state)
    for resumed in (fresh, loaded):
        rest = take(resumed, BATCHES - stop)
        assert [batch.step for batch in rest] == list(range(stop, BATCHES))
        assert seen_in(rest) == seen_in(whole[stop:])


def test_a_loader_that_is_running_can_be_sent_back(tiny_workspace: Store) -> None:
    loader = loader_of(tiny_workspace)
    state = loader.state_dict()
    first = take(loader, 3)
    loader.load_state_dict(state)
    assert seen_in(take(loader, 3)) == seen_in(first)


def test_a_closed_loader_has_no_shard_open_and_can_go_on(tiny_workspace: Store) -> None:
    """Otherwise a process that makes many of them runs out of descriptors."""
    whole = seen_in(take(loader_of(tiny_workspace), 6))
    before = open_shards()
    loader = loader_of(tiny_workspace)
    seen = seen_in(take(loader, 3))
    assert open_shards() > before
    loader.close()
    assert open_shards() == before
    assert seen | seen_in(take(loader, 3)) == whole
    loader.close()


def open_shards() -> int:
    """How many descriptors of this process are of shards."""
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return sum(link.endswith(".tar") for link in links)


def test_going_on_with_another_number_of_ranks(tiny_workspace: Store) -> None:
    whole = seen_in(take(loader_of(tiny_workspace), 9))
    seen = seen_in(take(loader_of(tiny_workspace), 3))
    for rank in range(4):
        seen |= seen_in(take(loader_of(tiny_workspace, World(rank, 4), position=24), 3))
    for rank in range(2):
        seen |= seen_in(take(loader_of(tiny_workspace, World(rank, 2), position=48), 3))
    assert seen == whole


def test_two_loader_processes_give_the_same_stream_and_can_be_resumed(tiny_workspace: Store) -> None:
    """One test for both, since starting processes takes seconds."""
    whole = take(loader_of(tiny_workspace), 8)
    loader = loader_of(tiny_workspace, position=8, workers=2)
    batches = take(loader, 5)
    assert [batch.step for batch in batches] == [1, 2, 3, 4, 5]
    assert seen_in(batches) == seen_in(whole[1:6])
    assert loader.position == 48  # what was consumed, not what was prepared


def test_plugs_into_a_dataloader(tiny_workspace: Store) -> None:
    whole = take(loader_of(tiny_workspace), 4)
    plugged = DataLoader(loader_of(tiny_workspace), batch_size=None)
    assert seen_in(list(itertools.islice(plugged, 4))) == seen_in(whole)
    with pytest.raises(RefusedError, match=r"num_workers must be 0.*stream\.workers"):
        next(iter(DataLoader(loader_of(tiny_workspace), batch_size=None, num_workers=1)))


def test_mixup_is_drawn_for_the_global_batch_with_partners_of_the_slot(tiny_workspace: Store) -> None:
    """Each sample is mixed with the same partner, by the same share, whatever the world."""

    def mixed(world: World) -> dict[int, tuple[float, int]]:
        batches = take(loader_of(tiny_workspace, world, mixup=0.5, batch_size=16), 3)
        return {
            position: (batch.coefficient, batch.positions[int(batch.partners[at])])
            for batch in batches
            if batch.partners is not None
            for at, position in enumerate(batch.positions)
        }

    alone = mixed(ALONE)
    assert len(alone) == 48
    assert len({coefficient for coefficient, _ in alone.values()}) == 3
    assert all(0.5 <= share <= 1 and other % 4 == position % 4 for position, (share, other) in alone.items())
    for size in (2, 4):
        assert {at: pair for rank in range(size) for at, pair in mixed(World(rank, size)).items()} == alone
    plain = take(loader_of(tiny_workspace), 1)[0]
    assert (plain.coefficient, plain.partners) == (1.0, None)


def test_a_mixture_gives_each_dataset_its_share_in_its_own_order(tmp_path: Any) -> None:
    workspace = open_store(str(tmp_path))
    for name, seed in (("a", 1), ("b", 2)):
        make_dataset(workspace, name, num_samples=24, num_classes=4, size=16, max_samples=13, seed=seed)

    def of(names: list[str], weights: list[float], world: World = ALONE, **given: Any) -> StreamLoader:
        readers = open_readers(workspace, names, RECIPE, world)
        return StreamLoader(readers, RECIPE, seed=7, world=world, weights=weights, **given)

    both = take(of(["a", "b"], [3, 1]), 12)
    own = {name: [row for batch in take(of([name], [1]), 9) for row in batch.images] for name in ("a", "b")}
    rows = [
        (int(number), image) for batch in both for number, image in zip(batch.origins[0], batch.images, strict=True)
    ]
    assert [number for number, _ in rows].count(1) == 24
    for number, name in enumerate(("a", "b")):
        mine = [image for dataset, image in rows if dataset == number]
        assert all(image.equal(wanted) for image, wanted in zip(mine, own[name], strict=False))
    ranks = [take(of(["a", "b"], [3, 1], World(rank, 2)), 12) for rank in range(2)]
    assert seen_in(ranks[0]) | seen_in(ranks[1]) == seen_in(both)
    assert seen_in(take(of(["a", "b"], [3, 1], position=40), 7)) == seen_in(both[5:])
    state = of(["a", "b"], [3, 1]).state_dict()
    of(["a", "b"], [0.75, 0.25]).load_state_dict(state)  # the same shares
    for names, weights in ((["a", "b"], [1.0, 1.0]), (["b", "a"], [3.0, 1.0]), (["a"], [1.0])):
        with pytest.raises(MismatchError, match="dataset_digest"):
            of(names, weights).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 8}, "seed: 7 -> 8"),
        ({"batch_size": 16}, "batch_size: 8 -> 16"),
        ({"partitions": 2}, "partitions: 4 -> 2"),
        ({"window": 5}, "window: 6 -> 5"),
        ({"mixup": 0.2}, "mixup: 0.0 -> 0.2"),
        ({"augment": AugmentRecipe(size=12, flip=False)}, "augment.flip: true -> false"),
        ({"augment": AugmentRecipe(size=13)}, "augment.size: 12 -> 13"),
    ],
)
def test_a_position_of_another_order_is_refused_naming_the_difference(
    tiny_workspace: Store, changes: dict[str, Any], told: str
) -> None:
    state = loader_of(tiny_workspace, position=16).state_dict()
    other = loader_of(tiny_workspace, **changes)
    with pytest.raises(MismatchError) as caught:
        other.load_state_dict(state)
    assert str(caught.value).endswith(f": {told}")
    assert other.position == 0


def test_a_position_of_another_dataset_is_refused(tiny_workspace: Store, tmp_path: Any) -> None:
    elsewhere = open_store(str(tmp_path))
    other = make_dataset(elsewhere, "tiny", num_samples=50, num_classes=4, size=16, max_samples=13, seed=1)
    state = loader_of(tiny_workspace).state_dict()
    with pytest.raises(MismatchError, match=f'dataset_digest: "{state["dataset_digest"]}" -> "{other.digest}"'):
        loader_of(elsewhere).load_state_dict(state)


def test_an_incomplete_state_is_refused(tiny_workspace: Store) -> None:
    with pytest.raises(MismatchError, match=r"seed: \(absent\) -> 7"):
        loader_of(tiny_workspace).load_state_dict({"position": 8})


def test_a_position_inside_a_batch_is_refused(tiny_workspace: Store) -> None:
    with pytest.raises(MismatchError, match="12 is inside a global batch"):
        next(loader_of(tiny_workspace, position=12))


def test_what_does_not_change_the_order_may_change_between_attempts(tiny_workspace: Store) -> None:
    state = loader_of(tiny_workspace, position=16).state_dict()
    other = loader_of(tiny_workspace, World(1, 2), workers=2, max_damaged=5)
    other.load_state_dict(state)
    assert other.position == 16


def test_a_world_that_does_not_divide_is_refused_before_anything_is_read(tiny_workspace: Store) -> None:
    with pytest.raises(RecipeError, match=r"3 workers .* 1, 2, 4"):
        loader_of(tiny_workspace, World(0, 3))


@pytest.mark.parametrize("labels", [[], [0, 1]])
def test_samples_without_exactly_one_label_are_refused_by_key(tmp_path: Any, labels: list[int]) -> None:
    workspace = open_store(str(tmp_path))
    images: dict[str, bytes | None] = {"x.png": png(noise(4, 4))}
    corpus = corpus_of(images, {"x.png": labels}, ("a", "b"))
    shard_corpus(workspace, "tiny", corpus, ShardRecipe())
    reader = DatasetReader(workspace, "tiny")
    with pytest.raises(
        DamageError, match=rf"{reader.keys(0)[0]} at byte \d+: it has {len(labels)} labels; this objective needs one"
    ):
        next(loader_of(workspace))
