"""The global order of samples: a pure function of (dataset digest, seed, partitions, window). See docs/architecture.md.

Epoch e permutes the shards and puts all N samples in a row. The row is cut into P partitions of nearly equal size and
each is shuffled within consecutive windows. Position i of the endless order belongs to epoch ``i // N``; inside the
epoch, with ``r = i % N``, it is item ``r // P`` of partition ``r % P``. So slot ``i % P`` of epoch e reads partition
``(i - e N) % P``: no padding, no drop, and any position is found without the ones before it.

What is in memory is two integers per shard for each of two epochs: windows are shuffled by permutations that are
computed at a point (``permute``): no table, whatever their length. That is a balanced Feistel network over the smallest
square domain that holds the length, walked until it lands inside: a bijection by construction, whatever the round
function is. Eight rounds: with six, 4 million keys show which pairs of places are favoured at lengths below 100; with
eight they do not. On a handful of items no number of rounds makes all permutations equally likely, so there items are
ranked by their hashes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError, RecipeError
from pipeline.base.seeds import derive
from pipeline.base.world import World, allowed_world_sizes

Ints = NDArray[np.int64]
Uints = NDArray[np.uint64]

_ROUNDS = 8
_FEW = 16  # lengths up to here are ranked
_STEP = np.uint64(0x9E3779B97F4A7C15)
_STEPS = np.arange(1, 1 + max(_ROUNDS, _FEW), dtype=np.uint64) * _STEP
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(values: Uints) -> Uints:
    """The finaliser of splitmix64, a bijection: each bit of the result depends on every bit of *values*."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def permute(items: Uints, lengths: Uints, keys: Uints) -> Uints:
    """The number of each of *items*, in [0, length), in the permutation of its length and key. All uint64 (n,).

    Lengths from 1 to 2**53.
    """
    few = lengths <= _FEW
    if not few.any():
        return _walk(items, lengths, keys)
    permuted, many = np.empty_like(items), ~few
    permuted[few] = _rank(items[few], lengths[few], keys[few])
    permuted[many] = _walk(items[many], lengths[many], keys[many])
    return permuted


def shuffled(length: int, key: np.uint64) -> NDArray[np.int64]:
    """The numbers below *length* in the order of their hashes, int64 (length,): a permutation as a table."""
    numbers = np.arange(1, length + 1, dtype=np.uint64)
    return np.argsort(mix(key ^ numbers * _STEP)).astype(np.int64)  # hashes of one key are distinct


def _rank(items: Uints, lengths: Uints, keys: Uints) -> Uints:
    """The rank of each item's hash among those of its length; hashes of one key are distinct."""
    own, ranks = mix(keys ^ _STEPS[items]), np.zeros_like(items)
    for number in range(int(lengths.max(initial=0))):
        ranks += (mix(keys ^ _STEPS[number]) < own) & (number < lengths)
    return ranks


def _walk(items: Uints, lengths: Uints, keys: Uints) -> Uints:
    exponents = np.frexp((lengths - np.uint64(1)).astype(np.float64))[1]  # bits of the largest item, exactly
    bits = ((exponents + 1) // 2).astype(np.uint64)  # of each half
    permuted = _network(items, bits, keys)
    outside = np.flatnonzero(permuted >= lengths)
    while len(outside):
        permuted[outside] = _network(permuted[outside], bits[outside], keys[outside])
        outside = outside[permuted[outside] >= lengths[outside]]
    return permuted


def _network(items: Uints, bits: Uints, keys: Uints) -> Uints:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = items >> bits, items & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (mix(right ^ (keys + _STEPS[number])) & mask)
    return (left << bits) | right


@dataclass(frozen=True)
class SampleRefs:
    """Where positions of the order point: epoch, number of the shard in the card, row in its index. Each int64 (n,)."""

    epochs: Ints
    shards: Ints
    rows: Ints


@dataclass(frozen=True)
class SampleRef:
    """One of them, with its position."""

    position: int
    epoch: int
    shard: int
    row: int


class Order:
    """The endless order over the shards of one dataset. Memory grows with the number of shards, not of samples."""

    def __init__(
        self, shard_sizes: Sequence[int], dataset_digest: str, *, seed: int, partitions: int, window: int
    ) -> None:
        self._sizes: Ints = np.asarray(shard_sizes, dtype=np.int64)
        self.num_samples = int(self._sizes.sum())
        if not self.num_samples:
            raise InputError("the dataset has no samples", "shard a corpus that has some")
        self._identity = (dataset_digest, partitions, window)
        self._seed, self.partitions, self.window = seed, partitions, window
        self._key = np.uint64(derive(seed, "window", *self._identity))
        self._epoch_layout = lru_cache(maxsize=2)(self._layout_of)

    def refs(self, positions: Ints) -> SampleRefs:
        """The samples at *positions* (n,), in any order."""
        epochs, rest = np.divmod(positions, self.num_samples)
        items, partitions = np.divmod(rest, self.partitions)
        starts, stops = self.partition_bounds(partitions)
        windows, inside = np.divmod(items, self.window)
        lengths = np.minimum(self.window, stops - starts - windows * self.window)
        shuffled = permute(_uints(inside), _uints(lengths), self._keys(epochs, partitions, windows))
        in_row = starts + windows * self.window + shuffled.astype(np.int64)
        shards, rows = np.empty_like(in_row), np.empty_like(in_row)
        for epoch in np.unique(epochs).tolist():
            selected = epochs == epoch
            shards[selected], rows[selected] = self._in_shards(epoch, in_row[selected])
        return SampleRefs(epochs, shards, rows)

    def ref(self, position: int) -> SampleRef:
        """The sample at one *position*."""
        refs = self.refs(np.asarray([position], dtype=np.int64))
        return SampleRef(position, int(refs.epochs[0]), int(refs.shards[0]), int(refs.rows[0]))

    def partition_bounds(self, partitions: Ints) -> tuple[Ints, Ints]:
        """[start, stop) of each partition in the epoch's row: sizes are those that the residues mod P have."""
        size, extra = divmod(self.num_samples, self.partitions)
        starts = partitions * size + np.minimum(partitions, extra)
        return starts, starts + size + (partitions < extra)

    def shards_ahead(self, position: int, slots: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(position, shard) of what *slots* read from *position* on: at that position or later, not before it.

        Endless and ascending. A shard comes again with each window that reads of it.
        """
        nexts = [(position + (slot - position) % self.partitions) for slot in slots]
        heapq.heapify(nexts)
        while True:
            first = nexts[0]
            epoch, begin, end, after = self._window_at(first)
            shards, ends = self._epoch_layout(epoch)
            start, stop = np.searchsorted(ends, (begin, end - 1), side="right").tolist()
            for shard in shards[start : stop + 1].tolist():
                if self._sizes[shard]:
                    yield first, shard
            heapq.heapreplace(nexts, after)

    def _window_at(self, position: int) -> tuple[int, int, int, int]:
        """The window that *position* reads: epoch, [begin, end) in its row, the slot's first position after it."""
        epoch, rest = divmod(position, self.num_samples)
        number, partition = divmod(rest, self.partitions)
        start, stop = (int(bound) for bound in self.partition_bounds(np.asarray(partition)))
        begin = start + number // self.window * self.window
        end = min(begin + self.window, stop)
        return epoch, begin, end, position + (end - start - number) * self.partitions

    def _keys(self, epochs: Ints, partitions: Ints, windows: Ints) -> Uints:
        keys = mix(self._key ^ mix(_uints(epochs)))
        return mix(keys ^ mix((_uints(partitions) << np.uint64(40)) ^ _uints(windows)))

    def _in_shards(self, epoch: int, in_row: Ints) -> tuple[Ints, Ints]:
        shards, ends = self._epoch_layout(epoch)
        slots = np.searchsorted(ends, in_row, side="right")
        numbers = shards[slots]
        return numbers, in_row - ends[slots] + self._sizes[numbers]

    def _layout_of(self, epoch: int) -> tuple[Ints, Ints]:
        shards = shuffled(len(self._sizes), np.uint64(derive(self._seed, "shards", *self._identity, epoch)))
        return shards, np.cumsum(self._sizes[shards])


def _uints(values: Ints) -> Uints:
    return values.astype(np.uint64)


def check_world(world_size: int, partitions: int, batch_size: int) -> None:
    """Refuse a world size at which global batches would change, naming the sizes that work."""
    if partitions % world_size or batch_size % partitions:
        sizes = ", ".join(str(size) for size in allowed_world_sizes(partitions))
        raise RecipeError(
            [f"{world_size} workers do not divide stream.partitions {partitions}; world sizes that work: {sizes}"]
        )


def slots_of(partitions: int, world: World) -> range:
    """The slots of *world*'s rank: its block of the P."""
    per_rank = partitions // world.size
    return range(world.rank * per_rank, (world.rank + 1) * per_rank)


def batch_positions(step: int, batch_size: int, partitions: int, world: World) -> Ints:
    """The positions of *world*'s rank in global batch *step* (0 is the first), ascending."""
    slots = np.asarray(slots_of(partitions, world), dtype=np.int64)
    rows = np.arange(batch_size // partitions, dtype=np.int64)
    return (step * batch_size + rows[:, None] * partitions + slots[None, :]).reshape(-1)
