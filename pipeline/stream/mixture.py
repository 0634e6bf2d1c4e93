"""Several datasets in one order, with exact weights. One dataset is the mixture of one.

The order is cut into rows of P positions, one for each slot. A cycle of as many rows as the weights add up to gives
each dataset as many rows as its weight says, spread evenly; so after any number of rows no dataset is more than one
row away from its share. A dataset's rows, taken together, are its own order: each of its samples is seen once in each
of *its* epochs, at every world size, and any position is still found without the ones before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pipeline.base.errors import RecipeError
from pipeline.stream.order import Ints, Order, Places

_MAX_CYCLE = 10_000


@dataclass(frozen=True)
class Located:
    """Where positions point: number of the dataset, position in its own order, and the places there. Each (n,)."""

    datasets: Ints
    positions: Ints
    places: Places


class Mixture:
    """The endless order over *orders*, all of the same number of partitions. *weights* default to one each."""

    def __init__(self, orders: Sequence[Order], weights: Sequence[float] = ()) -> None:
        self.orders = tuple(orders)
        self.partitions = self.orders[0].partitions
        shares = whole_weights(weights or [1.0] * len(self.orders))
        self._pattern = _spread(shares)
        taken = self._pattern[:, None] == np.arange(len(shares))[None, :]
        self._before: Ints = np.cumsum(taken, axis=0) - taken  # rows of each dataset before a row of the cycle
        self._shares: Ints = np.asarray(shares, dtype=np.int64)

    def locate(self, positions: Ints) -> Located:
        """What stands at *positions* (n,)."""
        datasets, own = self.own_positions(positions)
        epochs, shards, rows = (np.empty_like(own) for _ in range(3))
        for number in np.unique(datasets).tolist():
            here = datasets == number
            places = self.orders[number].places(own[here])
            epochs[here], shards[here], rows[here] = places.epochs, places.shards, places.rows
        return Located(datasets, own, Places(epochs, shards, rows))

    def own_positions(self, positions: Ints) -> tuple[Ints, Ints]:
        """Number of the dataset, and position in its own order, of each of *positions*."""
        rows, slots = np.divmod(positions, self.partitions)
        cycles, inside = np.divmod(rows, len(self._pattern))
        datasets = self._pattern[inside]
        own_rows = cycles * self._shares[datasets] + self._before[inside, datasets]
        return datasets, own_rows * self.partitions + slots

    def shards_ahead(self, position: int, slots: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(dataset, shard) that *slots* will read from *position* on, about in the order of need, endlessly."""
        first_row = position // self.partitions
        cycle, inside = divmod(first_row, len(self._pattern))
        starts = (cycle * self._shares + self._before[inside]) * self.partitions
        ahead = [order.shards_ahead(int(start), slots) for order, start in zip(self.orders, starts, strict=True)]
        while True:
            for number in self._pattern.tolist():
                yield number, next(ahead[number])


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the ratio of *weights*. Raises RecipeError when their sum would pass 10,000."""
    exact = [Fraction(str(weight)) for weight in weights]
    if min(exact) <= 0:
        raise RecipeError(["weights of a mixture must be positive"])
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    shared = math.gcd(*whole)
    whole = [weight // shared for weight in whole]
    if sum(whole) > _MAX_CYCLE:
        raise RecipeError([f"the weights {list(weights)} need a cycle of {sum(whole)} rows; round them"])
    return whole


def _spread(shares: list[int]) -> Ints:
    """The dataset of each row of a cycle: always the one that is furthest behind its share."""
    owed = [0] * len(shares)
    pattern = []
    for _ in range(sum(shares)):
        owed = [debt + share for debt, share in zip(owed, shares, strict=True)]
        chosen = max(range(len(shares)), key=lambda number: (owed[number], -number))
        owed[chosen] -= sum(shares)
        pattern.append(chosen)
    return np.asarray(pattern, dtype=np.int64)
