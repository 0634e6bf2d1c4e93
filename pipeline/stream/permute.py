"""Pseudo-random permutations that are computed at a point: no table, whatever their length.

A balanced Feistel network over the smallest square domain that holds the length, walked until it lands inside. A
bijection by construction, whatever the round function is; the rounds mix with the finaliser of splitmix64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
_ROUNDS = 6
_STEPS = np.arange(1, 1 + _ROUNDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(values: Words) -> Words:
    """The finaliser of splitmix64: each bit of the result depends on every bit of *values*."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def permute(items: Words, lengths: Words, keys: Words) -> Words:
    """Where each of *items*, in [0, length), goes in the permutation of its length and key. All uint64 (n,)."""
    bits = np.ceil(np.log2(np.maximum(lengths, 2).astype(np.float64)) / 2).astype(np.uint64)  # of each half
    found = _network(items, bits, keys)
    outside = np.flatnonzero(found >= lengths)
    while len(outside):
        found[outside] = _network(found[outside], bits[outside], keys[outside])
        outside = outside[found[outside] >= lengths[outside]]
    return found


def _network(items: Words, bits: Words, keys: Words) -> Words:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = items >> bits, items & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (mix(right ^ (keys + _STEPS[number])) & mask)
    return (left << bits) | right
