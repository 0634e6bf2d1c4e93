"""Permutations computed at a point: bijections at every length, and no length favours a place, a pair or an order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.stream.order import mix, permute, shuffled

KEYS = st.integers(0, 2**64 - 1)
AROUND_POWERS = [4**power + more for power in range(2, 8) for more in (-1, 0, 1)]


def permutation(length: int, key: int) -> list[int]:
    """The whole permutation of one length and key."""
    items = np.arange(length, dtype=np.uint64)
    found: list[int] = permute(items, np.full_like(items, length), np.full_like(items, key)).tolist()
    return found


def places(item: int, length: int, num_keys: int) -> NDArray[np.int64]:
    """Where *item* goes under each of *num_keys* keys."""
    keys = mix(np.arange(1, num_keys + 1, dtype=np.uint64))
    return permute(np.full_like(keys, item), np.full_like(keys, length), keys).astype(np.int64)


def assert_even(counts: NDArray[np.int64], least: float = -5.0, most: float = 5.0) -> None:
    """Chi-square of *counts* against equal ones, in standard deviations."""
    expected, free = counts.sum() / counts.size, counts.size - 1
    deviation = (((counts - expected) ** 2 / expected).sum() - free) / math.sqrt(2 * free)
    assert least < deviation < most, deviation


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1])
def test_each_length_up_to_300_is_a_bijection(key: int) -> None:
    for length in range(1, 301):
        assert sorted(permutation(length, key)) == list(range(length))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.integers(1, 5_000), st.sampled_from(AROUND_POWERS)), KEYS)
def test_any_length_and_key_is_a_bijection(length: int, key: int) -> None:
    assert sorted(permutation(length, key)) == list(range(length))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 2**52), KEYS, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=20))
def test_items_of_many_lengths_and_keys_at_once(asked: list[tuple[int, int, float]]) -> None:
    """The same as each alone; and inside its length however large that is."""
    lengths = np.array([length for length, _, _ in asked], dtype=np.uint64)
    keys = np.array([key for _, key, _ in asked], dtype=np.uint64)
    items = np.array([min(length - 1, int(length * share)) for length, _, share in asked], dtype=np.uint64)
    found = permute(items, lengths, keys)
    assert (found < lengths).all()
    alone = [permute(items[at : at + 1], lengths[at : at + 1], keys[at : at + 1]) for at in range(len(asked))]
    assert np.concatenate(alone).tolist() == found.tolist()


@pytest.mark.parametrize("length", [2**power + more for power in range(40, 53, 4) for more in (-1, 0, 1)])
def test_large_lengths_do_not_meet(length: int) -> None:
    """Both ends and some between: distinct places, though the domain's size is found in floating point."""
    items = np.unique(np.concatenate([np.arange(2_000), length - 1 - np.arange(2_000)]).astype(np.uint64))
    found = permute(items, np.full_like(items, length), np.full_like(items, 7))
    assert len(np.unique(found)) == len(items)
    assert (found < length).all()


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
def test_all_orders_of_a_few_are_equally_likely(length: int) -> None:
    found = np.stack([places(item, length, 100_000) for item in range(length)], axis=1)
    codes = {order: number for number, order in enumerate(itertools.permutations(range(length)))}
    counts = np.bincount([codes[tuple(order)] for order in found.tolist()], minlength=len(codes))
    assert_even(counts)


@pytest.mark.parametrize("length", [7, 16, 17, 40, 64, 65])
def test_no_place_and_no_pair_of_places_is_favoured(length: int) -> None:
    """A million keys: with five rounds this fails; with six it takes four million to see which are favoured."""
    for ours, theirs in ((0, 1), (length - 2, length - 1), (2, length // 2)):
        first, second = places(ours, length, 1_000_000), places(theirs, length, 1_000_000)
        assert_even(np.bincount(first, minlength=length))
        pairs = np.bincount(first * (length - 1) + second - (second > first), minlength=length * (length - 1))
        assert_even(pairs)


@pytest.mark.parametrize("length", [300, 1_000, 10_000])
def test_neighbours_end_up_at_any_distance(length: int) -> None:
    for item in (0, length // 2, length - 2):
        apart = (places(item + 1, length, 200_000) - places(item, length, 200_000)) % length
        assert_even(np.bincount(apart, minlength=length)[1:])


@pytest.mark.parametrize("length", [3, 10, 100, 1_000])
def test_fixed_points_are_as_rare_as_they_should_be(length: int) -> None:
    """One on average, whatever the length."""
    num_keys = 400_000 // length
    items = np.tile(np.arange(length, dtype=np.uint64), num_keys)
    keys = np.repeat(mix(np.arange(1, num_keys + 1, dtype=np.uint64)), length)
    found = int((permute(items, np.full_like(items, length), keys) == items).sum())
    assert abs(found / num_keys - 1) < 5 / math.sqrt(num_keys)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2_000), KEYS)
def test_a_shuffled_table_is_a_permutation(length: int, key: int) -> None:
    assert sorted(shuffled(length, np.uint64(key)).tolist()) == list(range(length))


def test_tables_of_all_orders_are_equally_likely() -> None:
    codes = {order: number for number, order in enumerate(itertools.permutations(range(5)))}
    keys = mix(np.arange(1, 30_001, dtype=np.uint64))
    assert_even(np.bincount([codes[tuple(shuffled(5, key).tolist())] for key in keys], minlength=len(codes)))


def test_the_golden_permutations() -> None:
    """A run that resumes relies on them."""
    assert permutation(10, 1) == GOLDEN_10
    assert permutation(20, 1) == GOLDEN_20
    assert shuffled(12, np.uint64(1)).tolist() == GOLDEN_TABLE


GOLDEN_10 = [8, 4, 0, 1, 3, 5, 9, 2, 6, 7]
GOLDEN_20 = [17, 3, 11, 6, 16, 18, 2, 7, 8, 14, 9, 4, 19, 13, 12, 0, 1, 5, 10, 15]
GOLDEN_TABLE = [10, 2, 3, 7, 11, 4, 1, 5, 8, 9, 0, 6]
