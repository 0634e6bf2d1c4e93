"""The global order of samples: a pure function of (dataset digest, seed, partitions, window). DESIGN.md, Order.

Epoch e permutes the shards and lays all N samples in a row. The row is cut into P partitions of nearly equal size and
each is shuffled within consecutive windows. Position i of the endless order belongs to epoch ``i // N``; inside the
epoch, with ``r = i % N``, it is item ``r // P`` of partition ``r % P``. So slot ``i % P`` of epoch e reads partition
``(i - e N) % P``: no padding, no drop, and any position is found without the ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError, RecipeError
from pipeline.base.seeds import generator
from pipeline.base.world import World, allowed_world_sizes

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a position of the order points: the shard's number in the card, and the sample's row in its index."""

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
        self._words = (dataset_digest, partitions, window)
        self._seed, self.partitions, self.window = seed, partitions, window
        self._epoch_layout = lru_cache(maxsize=2)(self._lay_out)
        self._window_order = lru_cache(maxsize=4 * partitions)(self._shuffle_window)

    def place(self, position: int) -> Place:
        """What stands at *position*."""
        epoch, rest = divmod(position, self.num_samples)
        partition, item = rest % self.partitions, rest // self.partitions
        start, stop = self.partition_bounds(partition)
        window, inside = divmod(item, self.window)
        length = min(self.window, stop - start - window * self.window)
        order = self._window_order(epoch, partition, window, length)
        in_row = start + window * self.window + int(order[inside])
        shards, ends = self._epoch_layout(epoch)
        slot = int(np.searchsorted(ends, in_row, side="right"))
        shard = int(shards[slot])
        return Place(position, epoch, shard, in_row - int(ends[slot]) + int(self._sizes[shard]))

    def partition_bounds(self, partition: int) -> tuple[int, int]:
        """[start, stop) of a partition in the epoch's row: sizes are those that the residues mod P have."""
        whole, extra = divmod(self.num_samples, self.partitions)
        start = partition * whole + min(partition, extra)
        return start, start + whole + (partition < extra)

    def _lay_out(self, epoch: int) -> tuple[Ints, Ints]:
        shards = generator(self._seed, "shards", *self._words, epoch).permutation(len(self._sizes))
        return shards, np.cumsum(self._sizes[shards])

    def _shuffle_window(self, epoch: int, partition: int, window: int, length: int) -> Ints:
        return generator(self._seed, "window", *self._words, epoch, partition, window).permutation(length)


def check_world(world_size: int, partitions: int, batch_size: int) -> None:
    """Refuse a world size at which global batches would change, naming the sizes that work."""
    if partitions % world_size or batch_size % partitions:
        sizes = ", ".join(str(size) for size in allowed_world_sizes(partitions))
        raise RecipeError(
            [f"{world_size} workers do not divide stream.partitions {partitions}; world sizes that work: {sizes}"]
        )


def batch_positions(step: int, batch_size: int, partitions: int, world: World) -> list[int]:
    """The positions of *world*'s rank in global batch *step* (0 is the first): those in its block of slots."""
    per_rank = partitions // world.size
    first, last = world.rank * per_rank, (world.rank + 1) * per_rank
    start = step * batch_size
    return [position for position in range(start, start + batch_size) if first <= position % partitions < last]
