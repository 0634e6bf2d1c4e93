"""Tests of a difference: p values, and what becomes of them when there are several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binom, norm


@dataclass(frozen=True)
class McNemar:
    """Of the samples on which only one is right: two-sided p values (McNemar, Psychometrika 12, 1947).

    ``exact`` is the binomial test's; ``mid_p`` counts half of what was seen, and is less timid (Fagerland et al., BMC
    Medical Research Methodology 13:91, 2013).
    """

    only_a: int
    only_b: int
    exact: float
    mid_p: float


def mcnemar(only_a: int, only_b: int) -> McNemar:
    """Of *only_a* samples on which A alone is right, and *only_b* on which B alone is."""
    trials, fewer = only_a + only_b, min(only_a, only_b)
    if not trials:
        return McNemar(only_a, only_b, 1.0, 1.0)
    tail, seen = float(binom.cdf(fewer, trials, 0.5)), float(binom.pmf(fewer, trials, 0.5))
    return McNemar(only_a, only_b, min(1.0, 2 * tail), min(1.0, 2 * tail - seen))


def normal_p(change: float, error: float) -> float:
    """Two-sided p value of a change with this standard error, taken as normal."""
    if error == 0:
        return 1.0 if change == 0 else 0.0
    return float(2 * norm.sf(abs(change) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for being several (Holm, Scandinavian Journal of Statistics 6, 1979): with all of those below 0.05
    called differences, the probability that one of them is none is at most 0.05. In the order given."""
    adjusted, largest, count = [0.0] * len(p_values), 0.0, len(p_values)
    for place, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
