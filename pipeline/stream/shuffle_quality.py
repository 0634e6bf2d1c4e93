"""How well an order shuffles, for a layout without data: against a permutation of all samples.

Two questions. How far apart do samples end up that are close together in the source: in consecutive rows of a shard,
or anywhere in one shard? And how evenly does a global batch draw from the shards? A window smaller than a partition
keeps them closer than a full permutation would; what that buys is that few shards are read at a time. Shards that
``vitpipe shard`` wrote hold samples drawn from all of the corpus, so there the source itself is shuffled, and what is
measured is how much of one epoch's company a sample keeps in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base.seeds import generator
from pipeline.stream.order import Ints, Order

_MAX_POSITIONS = 2_000_000  # of an epoch, that are measured
_STRETCHES = 8  # when they are not all: so many runs of whole windows, each of one partition
_BATCHES = 32  # that are drawn for the counts of shards


@dataclass(frozen=True)
class ShuffleQuality:
    """Of one epoch. Distances are means over pairs, in parts of what a full permutation has: 1 is as good as that."""

    window: int
    neighbour_distance: float  # of consecutive rows of a shard
    close_neighbours: float  # pairs of consecutive rows that are less than a batch apart; 1: as many as by chance
    shard_distance: float  # of any two samples of a shard
    shards_of_a_batch: float  # distinct shards in a global batch
    shards_by_chance: float  # of a full permutation
    largest_share: float  # of a global batch that comes from one shard, the mean over batches
    open_shards: int  # most distinct shards that a window of all partitions draws from at a time


def shuffle_quality(
    shard_sizes: Sequence[int] | Ints, *, batch_size: int, partitions: int, window: int, seed: int = 0, epoch: int = 1
) -> ShuffleQuality:
    """Measure the order of a dataset with *shard_sizes* samples in its shards.

    Up to 2 million samples all of them; of more, stretches of about as many, chosen by *seed*.
    """
    sizes: Ints = np.asarray(shard_sizes, dtype=np.int64)
    order = Order(sizes.tolist(), "", seed=seed, partitions=partitions, window=window)
    positions = _positions(order, epoch, seed)
    refs = order.refs(positions)
    source = (np.cumsum(sizes) - sizes)[refs.shards] + refs.rows
    by_source = np.argsort(source, kind="stable")
    apart = np.abs(np.diff(positions[by_source]))
    neighbours = (np.diff(source[by_source]) == 1) & (np.diff(refs.shards[by_source]) == 0)
    distances = apart[neighbours]
    batches = _batches(order, batch_size, epoch, seed)
    total = order.num_samples
    near = float((distances < batch_size).mean()) if len(distances) else 0.0
    return ShuffleQuality(
        window=window,
        neighbour_distance=_ratio(distances.mean() if len(distances) else 0.0, _expected(total)),
        close_neighbours=_ratio(near, _close(total, batch_size)),
        shard_distance=_ratio(_within_shards(positions, refs.shards), _expected(total)),
        shards_of_a_batch=float(np.mean([len(counts) for counts in batches])),
        shards_by_chance=float((1 - (1 - sizes / total) ** batch_size).sum()),
        largest_share=float(np.mean([counts.max() / counts.sum() for counts in batches])),
        open_shards=_open_shards(order, epoch, seed),
    )


def _expected(total: int) -> float:
    """The mean distance of two distinct places among *total*."""
    return (total + 1) / 3


def _close(total: int, distance: int) -> float:
    """How likely two distinct places among *total* are less than *distance* apart."""
    if distance >= total:
        return 1.0
    return (distance - 1) * (2 * total - distance) / (total * (total - 1))


def _ratio(measured: float, expected: float) -> float:
    return float(measured / expected) if expected else 1.0


def _positions(order: Order, epoch: int, seed: int) -> Ints:
    """Positions of whole windows of *epoch*: all, or some stretches."""
    start, total, slots = epoch * order.num_samples, order.num_samples, order.partitions
    if total <= _MAX_POSITIONS:
        return start + np.arange(total, dtype=np.int64)
    draw = generator(seed, "quality")
    partitions = draw.choice(slots, size=min(slots, _STRETCHES), replace=False)
    length = max(1, _MAX_POSITIONS // len(partitions) // order.window) * order.window
    parts = []
    for partition in partitions.tolist():
        first, last = (int(bound) for bound in order.partition_bounds(np.asarray(partition)))
        begin = int(draw.integers(0, max(0, last - first - length) // order.window + 1)) * order.window
        items = np.arange(begin, min(begin + length, last - first), dtype=np.int64)
        parts.append(start + items * slots + partition)
    return np.concatenate(parts)


def _within_shards(positions: Ints, shards: Ints) -> float:
    """The mean distance of two samples of one shard, over all such pairs. In one pass: no pair is looked at."""
    order = np.lexsort((positions, shards))
    shards, positions = shards[order], positions[order]
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    counts = np.diff(starts, append=len(shards))
    ranks = np.arange(len(shards)) - np.repeat(starts, counts)
    sizes = np.repeat(counts, counts)
    # Of n ascending places the k-th is the larger of k pairs and the smaller of n - 1 - k. Measured from the first, so
    # that sums stay exact in floating point.
    offsets = positions - np.repeat(positions[starts], counts)
    pairs = int((counts * (counts - 1) // 2).sum())
    return float((offsets * (2.0 * ranks - sizes + 1)).sum() / pairs) if pairs else 0.0


def _batches(order: Order, batch_size: int, epoch: int, seed: int) -> list[Ints]:
    """How many samples each shard gives to each of some global batches that lie inside *epoch*."""
    size = min(batch_size, order.num_samples)
    starts = generator(seed, "batches").integers(0, order.num_samples - size + 1, size=_BATCHES)
    counts = []
    for start in starts.tolist():
        refs = order.refs(epoch * order.num_samples + start + np.arange(size, dtype=np.int64))
        counts.append(np.unique(refs.shards, return_counts=True)[1])
    return counts


def _open_shards(order: Order, epoch: int, seed: int) -> int:
    """The most distinct shards that the windows of all partitions touch at one time, over some moments of *epoch*."""
    moments = generator(seed, "moments").integers(0, order.num_samples, size=_BATCHES)
    most = 0
    for moment in moments.tolist():
        at = epoch * order.num_samples + moment
        now = set()
        for position, shard in order.shards_ahead(at, range(order.partitions)):
            if position >= at + order.partitions:
                break
            now.add(shard)
        most = max(most, len(now))
    return most
