"""Several datasets in one order, over thousands of mixtures: exact shares, exact epochs, any position directly."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import RecipeError
from pipeline.base.world import World, allowed_world_sizes
from pipeline.stream.mixture import Mixture, whole_weights
from pipeline.stream.order import Order, batch_positions

many = settings(max_examples=1_000, deadline=None, derandomize=True)
some = settings(max_examples=300, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Mixed:
    """All that a mixture is made of: shard sizes of each dataset, its weight."""

    sizes: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    partitions: int
    window: int
    seed: int

    def mixture(self) -> Mixture:
        return Mixture([self.order(number) for number in range(len(self.sizes))], self.weights)

    def order(self, number: int) -> Order:
        return Order(self.sizes[number], str(number), seed=self.seed, partitions=self.partitions, window=self.window)


WEIGHTS = st.sampled_from([1, 1.0, 2, 3, 7, 0.5, 0.25, 0.1, 1.5, 10, 40])
SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple)


@st.composite
def mixtures(draw: st.DrawFn, most: int = 4) -> Mixed:
    """Mixtures of 1 to *most* datasets."""
    parts = draw(st.lists(st.tuples(SIZES, WEIGHTS), min_size=1, max_size=most))
    return Mixed(
        sizes=tuple(sizes for sizes, _ in parts),
        weights=tuple(weight for _, weight in parts),
        partitions=draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16])),
        window=draw(st.integers(1, 20)),
        seed=draw(st.integers(0, 2**32)),
    )


Sample = tuple[int, int, int, int]  # dataset, epoch, shard, row


def samples_at(mixture: Mixture, positions: object) -> list[Sample]:
    """What stands at *positions*."""
    found = mixture.locate(np.asarray(positions, dtype=np.int64))
    refs = found.refs
    columns = (found.datasets, refs.epochs, refs.shards, refs.rows)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@many
@given(mixtures())
def test_no_dataset_is_ever_a_row_away_from_its_share(mixed: Mixed) -> None:
    mixture, shares = mixed.mixture(), whole_weights(mixed.weights)
    num_rows = min(3 * sum(shares), 2_000)
    datasets, _ = mixture.own_positions(np.arange(num_rows) * mixed.partitions)
    counts = np.cumsum(datasets[:, None] == np.arange(len(shares)), axis=0)
    wanted = np.arange(1, num_rows + 1)[:, None] * np.array(shares) / sum(shares)
    assert np.abs(counts - wanted).max() < 1


@some
@given(st.lists(st.sampled_from([1, 1, 1, 2, 3, 8, 20, 50, 100]), min_size=1, max_size=40))
def test_shares_hold_for_any_number_of_datasets_within_tijdemans_bound(shares: list[int]) -> None:
    orders = [Order([1], "", seed=0, partitions=1, window=1) for _ in shares]
    total = sum(whole_weights(shares))
    datasets, own = Mixture(orders, shares).own_positions(np.arange(total))
    counts = np.cumsum(datasets[:, None] == np.arange(len(shares)), axis=0)
    wanted = np.arange(1, total + 1)[:, None] * np.array(shares) / sum(shares)
    assert np.abs(counts - wanted).max() <= 1 - 1 / max(1, 2 * len(shares) - 2) + 1e-9
    assert counts[-1].tolist() == whole_weights(shares)
    assert all((own[datasets == number] == np.arange(count)).all() for number, count in enumerate(counts[-1]))


@some
@given(mixtures(), st.integers(0, 30))
def test_a_dataset_taken_alone_is_its_own_order(mixed: Mixed, first_row: int) -> None:
    """So each of its samples is seen once in each of its epochs; from any row on."""
    positions = np.arange(first_row * mixed.partitions, (first_row + 40) * mixed.partitions)
    found = mixed.mixture().locate(positions)
    for number in range(len(mixed.sizes)):
        here = found.datasets == number
        own = found.positions[here]
        assert (np.diff(own) == 1).all()
        alone = mixed.order(number).refs(own)
        refs = found.refs
        assert (refs.epochs[here] == own // sum(mixed.sizes[number])).all()
        assert (refs.shards[here] == alone.shards).all()
        assert (refs.rows[here] == alone.rows).all()
        assert (positions[here] % mixed.partitions == own % mixed.partitions).all()


@some
@given(mixtures(), st.integers(1, 3), st.integers(0, 20), st.data())
def test_runs_that_change_their_world_see_each_sample_once_in_its_datasets_epoch(
    mixed: Mixed, times: int, resumed: int, data: st.DataObject
) -> None:
    mixture, batch_size = mixed.mixture(), times * mixed.partitions
    sizes = data.draw(st.lists(st.sampled_from(allowed_world_sizes(mixed.partitions)), min_size=1, max_size=8))
    parts = [
        batch_positions(step, batch_size, mixed.partitions, World(rank, size))
        for step, size in zip(range(resumed, resumed + 15), itertools.cycle(sizes), strict=False)
        for rank in range(size)
    ]
    positions = np.concatenate(parts)
    samples = samples_at(mixture, positions)
    assert set(Counter(samples).values()) == {1}
    whole = range(resumed * batch_size, (resumed + 15) * batch_size)
    assert [sample for _, sample in sorted(zip(positions.tolist(), samples, strict=True))] == samples_at(
        mixed.mixture(), whole
    )


@some
@given(mixtures(), st.integers(0, 10**12), st.integers(0, 2**32))
def test_any_position_is_found_without_the_ones_before_it(mixed: Mixed, start: int, seed: int) -> None:
    positions = range(start, start + 40)
    in_turn = dict(zip(positions, samples_at(mixed.mixture(), positions), strict=True))
    mixed_up = random.Random(seed).sample(positions, len(positions))
    assert samples_at(mixed.mixture(), mixed_up) == [in_turn[at] for at in mixed_up]
    mixture = mixed.mixture()
    assert [samples_at(mixture, [at])[0] for at in mixed_up[:10]] == [in_turn[at] for at in mixed_up[:10]]


@some
@given(mixtures(most=3), st.integers(0, 200), st.data())
def test_shards_are_named_before_they_are_read(mixed: Mixed, position: int, data: st.DataObject) -> None:
    """As a reader would: before each sample, all that is named before the next need must include its shard."""
    slots = sorted(data.draw(st.sets(st.integers(0, mixed.partitions - 1), min_size=1)))
    mixture = mixed.mixture()
    own_slots = [at for at in range(position, position + 40 * mixed.partitions) if at % mixed.partitions in slots]
    ahead = itertools.islice(mixture.shards_ahead(position, slots), 5_000)  # not for ever, if one is never named
    named: set[tuple[int, int]] = set()
    first_reads = dict.fromkeys((dataset, shard) for dataset, _, shard, _ in samples_at(mixture, own_slots))
    for nth, wanted in enumerate(first_reads):
        while wanted not in named:
            named.add(next(ahead))
        # no shard may be named so late that more than what windows hold stands before it
        assert len(named) <= nth + 1 + len(slots) * sum(_widest(mixed, number) for number in range(len(mixed.sizes)))


def _widest(mixed: Mixed, number: int) -> int:
    """The most shards that a window of a dataset can touch."""
    return min(len(mixed.sizes[number]), mixed.window + 1)


@some
@given(mixtures(), st.integers(0, 300), st.data())
def test_needs_are_told_at_the_positions_of_the_mixture(mixed: Mixed, position: int, data: st.DataObject) -> None:
    """Each need is at a position of one of the slots where that dataset stands, none before *position*, ascending."""
    slots = sorted(data.draw(st.sets(st.integers(0, mixed.partitions - 1), min_size=1)))
    mixture = mixed.mixture()
    for number in range(len(mixed.sizes)):
        needs = list(itertools.islice(mixture._needs(number, position, slots), 30))
        told = np.array([at for at, _, _ in needs])
        datasets, own = mixture.own_positions(told)
        assert (datasets == number).all()
        assert (np.diff(told) >= 0).all()
        assert told[0] >= position
        assert {at % mixed.partitions for at in told.tolist()} <= set(slots)
        expected = mixed.order(number).shards_ahead(int(own[0]), slots)
        assert [(at, shard) for at, (_, _, shard) in zip(own.tolist(), needs, strict=True)] == list(
            itertools.islice(expected, 30)
        )
        before = [at for at in range(position, int(told[0])) if at % mixed.partitions in slots]
        assert not (mixture.own_positions(np.array(before, dtype=np.int64))[0] == number).any()


def test_shards_of_a_mixture_come_in_the_order_of_need() -> None:
    """Ten small shards of one dataset are read while one large shard of the other lasts."""
    large = Order([1_000] * 5, "a", seed=0, partitions=2, window=100)
    small = Order([10] * 500, "b", seed=0, partitions=2, window=5)
    mixture = Mixture([large, small])
    named: list[tuple[int, int]] = []
    for need in mixture.shards_ahead(0, range(2)):
        if need not in named:
            named.append(need)
        if len(named) == 200:
            break
    read = dict.fromkeys((dataset, shard) for dataset, _, shard, _ in samples_at(mixture, range(4_000)))
    late = [nth - named.index(shard) for nth, shard in enumerate(read) if shard in named]
    assert len(late) > 150
    assert min(late) > -5  # a shard is never named long after another that is read after it
    assert Counter(dataset for dataset, _ in named)[0] < 10


@some
@given(mixtures(most=1), st.integers(0, 500))
def test_one_dataset_is_the_mixture_of_one(mixed: Mixed, start: int) -> None:
    positions = np.arange(start, start + 50)
    found, alone = mixed.mixture().locate(positions), mixed.order(0).refs(positions)
    assert (found.positions == positions).all()
    assert (found.refs.shards == alone.shards).all()
    assert (found.refs.rows == alone.rows).all()


def test_the_golden_pattern() -> None:
    """A run that resumes relies on it."""
    orders = [Order([5], str(number), seed=0, partitions=2, window=5) for number in range(3)]
    datasets, own = Mixture(orders, [3, 1, 0.5]).own_positions(np.arange(40))
    assert "".join(map(str, datasets.tolist())) == "0000110000220011000000110000220011000000"
    assert own[:12].tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 0, 1]


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([1], [1]),
        ([0.3], [1]),
        ([2, 4], [1, 2]),
        ([0.1, 0.3, 0.6], [1, 3, 6]),
        ([1e-3, 1], [1, 1000]),
        ([5.5, 1], [11, 2]),
    ],
)
def test_weights_become_the_smallest_whole_numbers(weights: list[float], whole: list[int]) -> None:
    assert whole_weights(weights) == whole


@many
@given(st.lists(st.integers(1, 500).map(lambda number: number / 20), min_size=1, max_size=5))
def test_whole_weights_keep_their_ratio(weights: list[float]) -> None:
    whole = whole_weights(weights)
    assert math.gcd(*whole) == 1
    assert len({Fraction(str(weight)) / share for weight, share in zip(weights, whole, strict=True)}) == 1


@pytest.mark.parametrize("weights", [[0, 1], [1, -1], [float("nan")], [1, float("inf")]])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(RecipeError, match="positive numbers"):
        whole_weights(weights)


@pytest.mark.parametrize("weights", [[1, 12345], [0.33333, 0.66667]])
def test_weights_that_would_need_a_long_cycle_are_refused(weights: list[float]) -> None:
    with pytest.raises(RecipeError, match="round them"):
        whole_weights(weights)


def test_orders_and_weights_must_fit() -> None:
    orders = [Order([5], "", seed=0, partitions=partitions, window=5) for partitions in (2, 2, 4)]
    for chosen, weights in ((orders, [1, 1, 1]), (orders[:2], [1, 1, 1]), (orders[:2], [1])):
        with pytest.raises(ValueError, match="mixture"):
            Mixture(chosen, weights)
