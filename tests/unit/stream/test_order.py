"""The global order, over thousands of layouts: what docs/architecture.md promises of it, as properties."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.base.errors import InputError, RecipeError
from pipeline.base.world import World, allowed_world_sizes
from pipeline.stream.order import Order, batch_positions, check_world

DIGEST = "d" * 64


@dataclass(frozen=True)
class Layout:
    """All that an order is made of."""

    sizes: tuple[int, ...]
    partitions: int
    window: int
    seed: int

    @property
    def num_samples(self) -> int:
        return sum(self.sizes)

    def order(self, **changes: Any) -> Order:
        fields = {"seed": self.seed, "partitions": self.partitions, "window": self.window} | changes
        digest = fields.pop("digest", DIGEST)
        return Order(self.sizes, digest, **fields)


LAYOUTS = st.builds(
    Layout,
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6).map(tuple),
    partitions=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]),
    window=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
many = settings(max_examples=1_000, deadline=None, derandomize=True)
some = settings(max_examples=300, deadline=None, derandomize=True)
PLAIN = Layout((20, 17, 9, 14), partitions=4, window=6, seed=1)


def sample_at(order: Order, position: int) -> tuple[int, int]:
    """(shard, row) at a position."""
    ref = order.ref(position)
    return ref.shard, ref.row


def samples_at(order: Order, positions: Any) -> list[tuple[int, int]]:
    """(shard, row) at each of *positions*."""
    found = order.refs(np.asarray(positions, dtype=np.int64))
    return list(zip(found.shards.tolist(), found.rows.tolist(), strict=True))


def epoch_of(order: Order, epoch: int) -> list[tuple[int, int]]:
    """The samples of one epoch in order."""
    return samples_at(order, epoch * order.num_samples + np.arange(order.num_samples))


@many
@given(LAYOUTS, st.integers(0, 3))
def test_each_sample_is_seen_once_in_each_epoch(layout: Layout, epoch: int) -> None:
    seen = epoch_of(layout.order(), epoch)
    assert sorted(seen) == [(shard, row) for shard, size in enumerate(layout.sizes) for row in range(size)]


@some
@given(LAYOUTS, st.integers(0, 10**12))
def test_a_place_names_its_position_and_epoch(layout: Layout, position: int) -> None:
    ref = layout.order().ref(position)
    assert ref.position == position
    assert ref.epoch == position // layout.num_samples
    assert 0 <= ref.row < layout.sizes[ref.shard]


@some
@given(LAYOUTS)
def test_the_partitions_tile_the_epoch_in_nearly_equal_parts(layout: Layout) -> None:
    starts, stops = layout.order().partition_bounds(np.arange(layout.partitions))
    bounds = list(zip(starts.tolist(), stops.tolist(), strict=True))
    assert bounds[0][0] == 0
    assert bounds[-1][1] == layout.num_samples
    assert all(ours[1] == theirs[0] for ours, theirs in itertools.pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@some
@given(LAYOUTS, st.integers(0, 3))
def test_a_slot_reads_one_partition_and_few_shards_are_split(layout: Layout, epoch: int) -> None:
    """Slot i mod P of epoch e reads partition (i - e N) mod P; at most P - 1 shards lie in two partitions."""
    order, start = layout.order(), epoch * layout.num_samples
    shards_of: dict[int, Counter[int]] = {}
    for position, (shard, _) in enumerate(epoch_of(order, epoch), start):
        partition = (position % layout.partitions - start) % layout.partitions
        shards_of.setdefault(partition, Counter())[shard] += 1
    for partition, shards in shards_of.items():
        first, last = order.partition_bounds(np.asarray(partition))
        assert shards.total() == last - first
    times = Counter(shard for shards in shards_of.values() for shard in shards)
    assert sum(times.values()) - len(times) <= layout.partitions - 1


@some
@given(LAYOUTS)
def test_a_window_holds_neighbours_of_the_row(layout: Layout) -> None:
    """Window k of a partition holds its items from k * window on, and no others: reading is never further ahead."""
    order = layout.order()
    shards, _ = order._epoch_layout(0)
    row = [(int(shard), row) for shard in shards for row in range(layout.sizes[shard])]
    place_in_row = {sample: place for place, sample in enumerate(row)}
    epoch = epoch_of(order, 0)
    for partition in range(layout.partitions):
        start, stop = order.partition_bounds(np.asarray(partition))
        places = [place_in_row[sample] for sample in epoch[partition :: layout.partitions]]
        for at in range(0, stop - start, layout.window):
            window = sorted(places[at : at + layout.window])
            assert window == list(range(start + at, min(start + at + layout.window, stop)))


@some
@given(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]), st.integers(1, 5), st.integers(0, 10_000))
def test_every_allowed_world_sees_the_same_batch_in_equal_parts(partitions: int, times: int, step: int) -> None:
    batch_size = partitions * times
    wanted = list(range(step * batch_size, (step + 1) * batch_size))
    for size in allowed_world_sizes(partitions):
        parts = [batch_positions(step, batch_size, partitions, World(rank, size)) for rank in range(size)]
        assert sorted(np.concatenate(parts).tolist()) == wanted
        assert all((np.diff(part) > 0).all() for part in parts)
        assert {len(part) for part in parts} == {batch_size // size}


@some
@given(LAYOUTS, st.integers(1, 3))
def test_each_rank_reads_its_own_slots_at_every_step(layout: Layout, times: int) -> None:
    for size in allowed_world_sizes(layout.partitions):
        slots = [
            {
                position % layout.partitions
                for step in range(4)
                for position in batch_positions(step, layout.partitions * times, layout.partitions, World(rank, size))
            }
            for rank in range(size)
        ]
        assert sum(len(part) for part in slots) == layout.partitions
        assert set().union(*slots) == set(range(layout.partitions))


@some
@given(LAYOUTS, st.integers(0, 2**32))
def test_any_position_is_found_without_the_ones_before_it(layout: Layout, seed: int) -> None:
    positions = range(2 * layout.num_samples)
    in_turn = samples_at(layout.order(), positions)
    mixed_up = random.Random(seed).sample(positions, len(positions))
    assert samples_at(layout.order(), mixed_up) == [in_turn[at] for at in mixed_up]
    alone = layout.order()
    assert [sample_at(alone, at) for at in mixed_up[:20]] == [in_turn[at] for at in mixed_up[:20]]


@many
@given(LAYOUTS, st.integers(1, 4), st.integers(0, 40), st.data())
def test_runs_that_change_their_world_see_each_sample_once_an_epoch(
    layout: Layout, times: int, resumed: int, data: st.DataObject
) -> None:
    """Steps from a resume point on, each at any allowed world size: the same batches, and nothing twice or never."""
    order, batch_size = layout.order(), times * layout.partitions
    steps = range(resumed, resumed + -(-3 * layout.num_samples // batch_size))
    sizes = data.draw(st.lists(st.sampled_from(allowed_world_sizes(layout.partitions)), min_size=1, max_size=8))
    given_out: list[NDArray[np.int64]] = []
    for step, size in zip(steps, itertools.cycle(sizes), strict=False):
        parts = [batch_positions(step, batch_size, layout.partitions, World(rank, size)) for rank in range(size)]
        assert {len(part) for part in parts} == {batch_size // size}
        assert set(np.concatenate(parts).tolist()) == set(range(step * batch_size, (step + 1) * batch_size))
        given_out += parts
    positions = np.concatenate(given_out)
    epochs = order.refs(positions).epochs.tolist()
    seen = Counter((epoch, *sample) for epoch, sample in zip(epochs, samples_at(order, positions), strict=True))
    assert set(seen.values()) == {1}
    whole = range(-(-steps.start * batch_size // layout.num_samples), steps.stop * batch_size // layout.num_samples)
    every = [(shard, row) for shard, size in enumerate(layout.sizes) for row in range(size)]
    assert all((epoch, *sample) in seen for epoch in whole for sample in every)


@many
@given(LAYOUTS, st.integers(0, 200), st.data())
def test_shards_are_named_before_they_are_read_and_no_others(
    layout: Layout, position: int, data: st.DataObject
) -> None:
    """What is named for a position is read by its slot, from then on, until it is named anew."""
    slots = sorted(data.draw(st.sets(st.integers(0, layout.partitions - 1), min_size=1)))
    order = layout.order()
    end = position + 2 * layout.num_samples + 2 * layout.partitions
    told = list(itertools.takewhile(lambda need: need[0] < end, order.shards_ahead(position, slots)))
    assert [at for at, _ in told] == sorted(at for at, _ in told)
    named: dict[int, dict[int, set[int]]] = {slot: {} for slot in slots}  # of each slot: from which position on, what
    for at, shard in told:
        named[at % layout.partitions].setdefault(at, set()).add(shard)
    for slot in slots:
        mine = range(position + (slot - position) % layout.partitions, end, layout.partitions)
        shards = [shard for shard, _ in samples_at(order, mine)]
        starts = sorted(named[slot])
        assert starts[:1] == list(mine[:1])
        for nth, start in enumerate(starts):
            stop = starts[nth + 1] if nth + 1 < len(starts) else end
            read = set(shards[mine.index(start) : mine.index(start) + len(range(start, stop, layout.partitions))])
            assert read <= named[slot][start]
            if 0 < nth < len(starts) - 1:  # windows that are read whole
                assert read == named[slot][start]


def test_the_order_of_need_holds_over_many_epochs() -> None:
    """Partitions whose sizes differ by one have another number of windows; no slot may get ahead of the others."""
    order = Layout((7, 6), partitions=4, window=3, seed=1).order()
    told = list(itertools.islice(order.shards_ahead(5, range(4)), 5_000))
    assert [at for at, _ in told] == sorted(at for at, _ in told)
    assert told[-1][0] > 100 * 13


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"digest": "e" * 64}, {"window": 7}, {"partitions": 2}],
    ids=lambda changes: next(iter(changes)),
)
def test_everything_that_names_the_order_changes_it(changes: dict[str, Any]) -> None:
    assert epoch_of(PLAIN.order(), 0) != epoch_of(PLAIN.order(**changes), 0)


def test_epochs_differ_and_each_is_shuffled() -> None:
    epochs = [epoch_of(PLAIN.order(), epoch) for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(epoch != sorted(epoch) for epoch in epochs)


def test_shards_change_places_between_epochs() -> None:
    """With windows of one sample nothing else is shuffled."""
    order = Layout((5,) * 8, partitions=1, window=1, seed=0).order()
    shards = [[shard for shard, row in epoch_of(order, epoch) if row == 0] for epoch in range(3)]
    assert len({tuple(sequence) for sequence in shards}) == 3
    assert epoch_of(order, 0)[:5] == [(shards[0][0], row) for row in range(5)]


def test_a_window_over_everything_is_a_full_shuffle() -> None:
    """Every sample may come first: over 400 seeds each of ten samples does, 40 times on average."""
    first = Counter(sample_at(Layout((10,), partitions=1, window=100, seed=seed).order(), 0)[1] for seed in range(400))
    assert set(first) == set(range(10))
    assert 15 <= min(first.values()) <= max(first.values()) <= 75


def test_the_golden_order() -> None:
    """The first 100 positions of one layout, over three epochs and a bit. A run that resumes relies on them."""
    order = Order([5, 7, 4, 9, 6], DIGEST, seed=3, partitions=4, window=5)
    found = " ".join(f"{ref.epoch}:{ref.shard}.{ref.row}" for ref in map(order.ref, range(100)))
    assert found.split() == GOLDEN.split()


GOLDEN = """
0:0.0 0:2.3 0:3.7 0:4.2 0:0.2 0:3.3 0:3.8 0:4.3 0:0.1 0:3.1 0:1.1 0:4.1 0:0.4 0:3.0 0:1.2 0:1.6 0:0.3 0:3.2 0:1.0
0:4.0 0:2.0 0:3.4 0:1.4 0:4.4 0:2.1 0:3.6 0:1.3 0:4.5 0:2.2 0:3.5 0:1.5 1:3.4 1:1.1 1:0.3 1:2.0 1:3.1 1:1.2 1:0.4
1:2.1 1:3.3 1:3.8 1:0.1 1:4.4 1:3.0 1:1.0 1:0.0 1:4.3 1:3.2 1:1.3 1:0.2 1:4.5 1:3.7 1:1.5 1:4.2 1:2.3 1:3.6 1:1.6
1:4.1 1:2.2 1:3.5 1:1.4 1:4.0 2:0.0 2:3.0 2:3.8 2:1.0 2:0.4 2:2.3 2:3.7 2:1.4 2:0.1 2:3.1 2:4.2 2:1.2 2:0.3 2:3.2
2:4.0 2:1.3 2:0.2 2:3.3 2:4.1 2:1.1 2:2.0 2:3.5 2:4.5 2:1.5 2:2.2 2:3.4 2:4.4 2:1.6 2:2.1 2:3.6 2:4.3 3:3.2 3:3.8
3:4.0 3:0.2 3:3.0 3:2.1 3:1.6
"""


def test_a_thousand_million_samples_take_no_more_memory_than_their_shards() -> None:
    order = Order([10_000] * 100_000, DIGEST, seed=0, partitions=64, window=10_000)
    assert order.num_samples == 10**9
    ref = order.ref(5 * 10**9 + 123_456_789)
    assert ref.epoch == 5
    neighbours = {sample_at(order, 64 * at) for at in range(1_000)}  # one slot
    assert len(neighbours) == 1_000
    assert len({shard for shard, _ in neighbours}) <= 2


def test_a_dataset_without_samples_is_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        Order([], DIGEST, seed=0, partitions=1, window=1)


def test_fewer_samples_than_partitions() -> None:
    order = Order([3], DIGEST, seed=0, partitions=8, window=4)
    for epoch in range(3):
        assert sorted(epoch_of(order, epoch)) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_worlds_that_divide_the_partitions_are_allowed(world_size: int) -> None:
    check_world(world_size, partitions=12, batch_size=24)


@pytest.mark.parametrize("world_size", [5, 7, 8, 9, 10, 11, 13, 24])
def test_other_worlds_are_refused_naming_those_that_work(world_size: int) -> None:
    with pytest.raises(RecipeError, match=rf"{world_size} workers .*: 1, 2, 3, 4, 6, 12$") as caught:
        check_world(world_size, partitions=12, batch_size=24)
    assert caught.value.exit_code == 2
