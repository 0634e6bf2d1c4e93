"""95 % intervals: Wilson for shares, percentile bootstrap over samples for everything else.

The bootstrap is that of Efron (Annals of Statistics 7, 1979): samples are drawn with replacement, here as multinomial
weights, and the interval runs between percentiles of the value under those weights. Its draws are named by a seed.

Shapes: N samples, B draws, b draws of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.base.seeds import generator

Floats = NDArray[np.floating]
Values = NDArray[np.float64]
DRAWS = 2000
LEVEL = 0.95
_Z = 1.959963984540054  # of the 95 % interval
_CHUNK_WEIGHTS = 2**22  # weights in memory at once
_EXACT_SAMPLES = 4096  # up to so many a mean's bootstrap draws samples, above it groups of similar ones
_GROUPS = 1024


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, JASA 22, 1927): also right near 0 and 1."""
    share, square = successes / trials, _Z**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding left 1 out of [.., 1]


def resampled(num_samples: int, seed: int, draws: int = DRAWS) -> Iterator[NDArray[np.float32]]:
    """Chunks (b, N) of weights: how often each sample was drawn. The same seed gives the same weights."""
    draw = generator(seed, "bootstrap")
    step = max(1, _CHUNK_WEIGHTS // num_samples)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        chosen = draw.integers(0, num_samples, (count, num_samples))
        chosen += num_samples * np.arange(count)[:, None]
        yield np.bincount(chosen.ravel(), minlength=count * num_samples).reshape(count, -1).astype(np.float32)


def resampled_cells(counts_C: NDArray[np.integer], seed: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """(B, C) the same for samples of which only the cell matters: how often each cell was drawn. Exact, and needs no
    N."""
    total = int(counts_C.sum())
    drawn: NDArray[np.int64] = generator(seed, "bootstrap").multinomial(total, counts_C / total, size=draws)
    return drawn


def bootstrap(
    value_of: Callable[[NDArray[np.float32]], Values], num_samples: int, seed: int, draws: int = DRAWS
) -> Values:
    """(B,) values under resampled weights. *value_of* takes weights (b, N) and returns (b,)."""
    return np.concatenate([value_of(weights) for weights in resampled(num_samples, seed, draws)])


def bootstrap_mean(values_N: Floats, seed: int, draws: int = DRAWS) -> Values:
    """(B,) means of *values_N* under resampled weights; of many samples by groups, as :func:`grouped_sums`."""
    values = values_N.astype(np.float64)
    if len(values) > _EXACT_SAMPLES:
        return grouped_sums(values, np.zeros(len(values), np.int64), 1, seed, draws)[:, 0] / len(values)
    middle = values.mean()
    centred = (values - middle).astype(np.float32)
    return bootstrap(
        lambda weights: middle + (weights @ centred).astype(np.float64) / len(values), len(values), seed, draws
    )


def grouped_sums(
    values_N: Floats, strata_N: NDArray[np.integer], num_strata: int, seed: int, draws: int = DRAWS
) -> Values:
    """(B, S) sums of *values_N* in each of S strata under resampled weights, at a cost that hardly grows with N.

    Samples of one stratum with values next to each other form about a thousand groups. How often each group was drawn
    is multinomial, as it is when samples are drawn; what was drawn of it is taken as normal around its mean with its
    variance. So mean and variance of the sums are those of drawing samples, and skewness all but that inside a group.
    """
    order = np.lexsort((values_N, strata_N))
    values, strata = values_N[order].astype(np.float64), strata_N[order]
    size = -(-len(values) // _GROUPS)
    first_rows = np.flatnonzero(np.diff(strata, prepend=-1))
    position = np.arange(len(values)) - np.repeat(first_rows, np.diff(first_rows, append=len(values)))
    starts = np.flatnonzero(position % size == 0)
    counts = np.diff(starts, append=len(values))
    means = np.add.reduceat(values, starts) / counts
    spread = np.add.reduceat((values - np.repeat(means, counts)) ** 2, starts) / counts
    of_stratum = np.zeros((len(starts), num_strata))
    of_stratum[np.arange(len(starts)), strata[starts]] = 1.0
    draw = generator(seed, "bootstrap")
    weights = draw.multinomial(len(values), counts / len(values), size=draws).astype(np.float64)
    noise = draw.standard_normal((draws, num_strata)) * np.sqrt(weights @ (of_stratum * spread[:, None]))
    sums: Values = weights @ (of_stratum * means[:, None]) + noise
    return sums


def percentiles(drawn_B: Values, level: float = LEVEL) -> tuple[float, float]:
    """The interval between the two percentiles; draws without a value (NaN) are left out."""
    low, high = np.nanquantile(drawn_B, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
