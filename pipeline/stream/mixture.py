"""Mixture: several datasets in one order, with exact weights. One dataset is the mixture of one.

The order is cut into rows of P positions, one for each slot. A cycle of as many rows as the weights add up to gives
each dataset as many rows as its weight says, spread evenly: after any number of rows no dataset is as much as one row
away from its share. A dataset's rows, taken together, are its own order: each of its samples is seen once in each
of *its* epochs, at every world size, and any position is still found without the ones before it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pipeline.base.digests import fingerprint
from pipeline.base.errors import RecipeError
from pipeline.stream.order import Ints, Order, SampleRefs

_MAX_CYCLE = 10_000  # rows


@dataclass(frozen=True)
class MixtureRefs:
    """Where positions point: number of the dataset, position in its own order, and the sample there. Each (n,)."""

    datasets: Ints
    positions: Ints
    refs: SampleRefs


class Mixture:
    """The endless order over *orders*, all of the same number of partitions. *weights* default to one each."""

    def __init__(self, orders: Sequence[Order], weights: Sequence[float] = ()) -> None:
        self.orders = tuple(orders)
        self.partitions = self.orders[0].partitions
        shares = whole_weights(weights or [1.0] * len(self.orders))
        if len(shares) != len(self.orders) or {order.partitions for order in self.orders} != {self.partitions}:
            raise ValueError("each order of a mixture needs a weight, and all the same partitions")
        self._pattern = _spread(shares)
        taken = self._pattern[:, None] == np.arange(len(shares))[None, :]
        self._before: Ints = np.cumsum(taken, axis=0) - taken  # rows of each dataset before a row of the cycle
        self._shares: Ints = np.asarray(shares, dtype=np.int64)

    def locate(self, positions: Ints) -> MixtureRefs:
        """The samples at *positions* (n,)."""
        datasets, own = self.own_positions(positions)
        epochs, shards, rows = (np.empty_like(own) for _ in range(3))
        for number in np.unique(datasets).tolist():
            selected = datasets == number
            refs = self.orders[number].refs(own[selected])
            epochs[selected], shards[selected], rows[selected] = refs.epochs, refs.shards, refs.rows
        return MixtureRefs(datasets, own, SampleRefs(epochs, shards, rows))

    def own_positions(self, positions: Ints) -> tuple[Ints, Ints]:
        """Number of the dataset, and position in its own order, of each of *positions*."""
        rows, slots = np.divmod(positions, self.partitions)
        cycles, inside = np.divmod(rows, len(self._pattern))
        datasets = self._pattern[inside]
        own_rows = cycles * self._shares[datasets] + self._before[inside, datasets]
        return datasets, own_rows * self.partitions + slots

    def shards_ahead(self, position: int, slots: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(dataset, shard) of what *slots* read from *position* on, in the order of need, endlessly.

        A shard comes again with each window that reads of it.
        """
        needs = [self._needs(number, position, slots) for number in range(len(self.orders))]
        for _, dataset, shard in heapq.merge(*needs, key=lambda need: need[0]):
            yield dataset, shard

    def _needs(self, number: int, position: int, slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """(position, dataset, shard) of one dataset: its own order's, at positions of the mixture."""
        row, slot = divmod(position, self.partitions)
        cycle, inside = divmod(row, len(self._pattern))
        own_row = cycle * int(self._shares[number]) + int(self._before[inside, number])
        of_this_row = int(self._pattern[inside]) == number  # else its next row begins with slot 0
        own_position = own_row * self.partitions + (slot if of_this_row else 0)
        rows_of_cycle = np.flatnonzero(self._pattern == number).tolist()
        for own, shard in self.orders[number].shards_ahead(own_position, slots):
            own_row, slot = divmod(own, self.partitions)
            cycle, nth = divmod(own_row, len(rows_of_cycle))
            yield (cycle * len(self._pattern) + rows_of_cycle[nth]) * self.partitions + slot, number, shard


def mixture_digest(digests: Sequence[str], weights: Sequence[float] = ()) -> str:
    """The digest of a mixture of the datasets of these *digests*; of one dataset, its own digest."""
    if len(digests) == 1:
        return digests[0]
    shares = whole_weights(weights or [1.0] * len(digests))
    return fingerprint([list(pair) for pair in zip(digests, shares, strict=True)])


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the ratio of *weights*. Raises RecipeError when their sum would pass 10,000."""
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise RecipeError([f"weights of a mixture must be positive numbers, not {list(weights)}"])
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    scaled = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*scaled)
    shares = [weight // divisor for weight in scaled]
    if sum(shares) > _MAX_CYCLE:
        raise RecipeError([f"the weights {list(weights)} need a cycle of {sum(shares)} rows; round them"])
    return shares


def _spread(shares: list[int]) -> Ints:
    """The dataset of each row of a cycle, so that none is ever a whole row away from its share.

    R. Tijdeman, "The chairman assignment problem" (1980): of n datasets, among those that are behind by 1 / (2n - 2)
    rows, the one that must come soonest if it is not to be further behind than 1 - 1 / (2n - 2). The simpler rule,
    the one that is furthest behind, leaves small weights behind by more than a row from four datasets on.
    """
    total, unit = sum(shares), max(1, 2 * len(shares) - 2)
    counts, pattern = [0] * len(shares), []
    for row in range(1, total + 1):
        due = [
            (-(-(unit * count + unit - 1) * total // (unit * share)), number)
            for number, (count, share) in enumerate(zip(counts, shares, strict=True))
            if unit * (share * row - total * count) >= total
        ]
        chosen = min(due)[1]
        counts[chosen] += 1
        pattern.append(chosen)
    return np.asarray(pattern, dtype=np.int64)
