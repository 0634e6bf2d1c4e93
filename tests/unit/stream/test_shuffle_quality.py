"""Shuffle quality against every pair looked at, and where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream import shuffle_quality as quality
from pipeline.stream.order import Order
from pipeline.stream.shuffle_quality import shuffle_quality


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=6),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 30),
    st.integers(1, 10),
)
def test_it_is_what_looking_at_each_pair_gives(sizes: list[int], partitions: int, window: int, times: int) -> None:
    batch_size, total = times * partitions, sum(sizes)
    found = shuffle_quality(sizes, batch_size=batch_size, partitions=partitions, window=window, seed=5, epoch=2)
    order = Order(sizes, "", seed=5, partitions=partitions, window=window)
    refs = order.refs(2 * total + np.arange(total))
    at = {where: position for position, where in enumerate(zip(refs.shards.tolist(), refs.rows.tolist(), strict=True))}
    neighbours = [
        abs(at[shard, row + 1] - at[shard, row]) for shard, size in enumerate(sizes) for row in range(size - 1)
    ]
    pairs = [
        abs(at[shard, one] - at[shard, other])
        for shard, size in enumerate(sizes)
        for one, other in itertools.combinations(range(size), 2)
    ]
    any_pairs = [other - one for one, other in itertools.combinations(range(total), 2)]
    if neighbours:
        assert found.neighbour_distance == pytest.approx(np.mean(neighbours) / np.mean(any_pairs))
        assert found.shard_distance == pytest.approx(np.mean(pairs) / np.mean(any_pairs))
    if neighbours and batch_size > 1:
        near, near_by_chance = np.less(neighbours, batch_size).mean(), np.less(any_pairs, batch_size).mean()
        assert found.close_neighbours == pytest.approx(near / near_by_chance)


def test_one_partition_and_a_window_of_everything_are_as_good_as_a_permutation() -> None:
    found = shuffle_quality([100] * 400, batch_size=512, partitions=1, window=40_000)
    assert found.neighbour_distance == pytest.approx(1, abs=0.02)
    assert found.close_neighbours == pytest.approx(1, abs=0.1)
    assert found.shard_distance == pytest.approx(1, abs=0.02)
    assert found.shards_of_a_batch == pytest.approx(found.shards_by_chance, rel=0.02)
    assert found.open_shards == 400


def test_no_window_leaves_neighbours_beside_each_other() -> None:
    found = shuffle_quality([100] * 80, batch_size=64, partitions=8, window=1)
    assert found.neighbour_distance == pytest.approx(8 / (8_001 / 3), rel=1e-3)
    assert found.shards_of_a_batch < 16
    assert found.largest_share == pytest.approx(1 / 8, abs=0.01)
    assert found.open_shards == 8


def test_a_larger_window_shuffles_better_and_opens_more_shards() -> None:
    windows = [shuffle_quality([500] * 200, batch_size=256, partitions=4, window=10**power) for power in range(1, 5)]
    for name, rises in (
        ("neighbour_distance", True), ("shards_of_a_batch", True), ("open_shards", True), ("close_neighbours", False)
    ):  # fmt: skip
        values = [getattr(found, name) for found in windows]
        assert values == sorted(values, reverse=not rises)
        assert values[0] != values[-1]


def test_many_samples_are_judged_by_stretches_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same within what a part can tell."""
    layout = {"batch_size": 256, "partitions": 8, "window": 200}
    whole = shuffle_quality([150] * 2_000, **layout)
    monkeypatch.setattr(quality, "_MAX_POSITIONS", 30_000)
    looked_at = len(quality._positions(Order([150] * 2_000, "", seed=0, partitions=8, window=200), 1, 0))
    assert 20_000 <= looked_at <= 30_000
    part = shuffle_quality([150] * 2_000, **layout)
    assert part.neighbour_distance == pytest.approx(whole.neighbour_distance, rel=0.1)
    assert part.shards_of_a_batch == pytest.approx(whole.shards_of_a_batch, rel=0.1)


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1], [0, 2], [3]])
def test_the_smallest_layouts_have_an_answer(sizes: list[int]) -> None:
    found = shuffle_quality(sizes, batch_size=8, partitions=8, window=10)
    assert found.shards_of_a_batch <= len(sizes)
    assert np.isfinite([found.neighbour_distance, found.close_neighbours, found.shard_distance]).all()
