"""Is B better than A? Paired comparison of per-sample outcomes: bootstrap intervals, McNemar, Holm.

::

    compare, compare_seeds   outcomes of A and B on the same test samples --> Comparison
    mcnemar, holm            p values, and their adjustment when there are several

Shapes: N test samples, B or b bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from pipeline.base.errors import InputError
from pipeline.evaluate.metrics.classification import mean_average_precision, resampled_map
from pipeline.evaluate.metrics.intervals import bootstrap, bootstrap_mean, percentiles, resampled_cells
from pipeline.evaluate.metrics.outcomes import Outcomes

ComparedMetric = Literal["top1", "top5", "mean_per_class", "nll", "mAP"]
COMPARED_METRICS: tuple[ComparedMetric, ...] = get_args(ComparedMetric)
# Metrics that are shares, shown in points of a hundred and better when larger; and how a sentence calls them.
_POINTS = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "mAP": "mAP"}
_CELL_DRAWS = 100_000  # bootstrap draws where only counts are drawn, which costs nothing
_DRAWS = 2000  # bootstrap draws elsewhere


@dataclass(frozen=True)
class McNemar:
    """Of the samples on which only one is right: two-sided p values (McNemar, Psychometrika 12, 1947).

    ``exact`` is the binomial test's; ``mid_p`` counts half of the probability of what was observed, and is less
    conservative (Fagerland et al., BMC Medical Research Methodology 13:91, 2013).
    """

    only_a: int
    only_b: int
    exact: float
    mid_p: float


def mcnemar(only_a: int, only_b: int) -> McNemar:
    """The test of *only_a* samples on which A alone is right, and *only_b* on which B alone is."""
    trials, fewer = only_a + only_b, min(only_a, only_b)
    if not trials:
        return McNemar(only_a, only_b, 1.0, 1.0)
    tail, observed = float(binom.cdf(fewer, trials, 0.5)), float(binom.pmf(fewer, trials, 0.5))
    return McNemar(only_a, only_b, min(1.0, 2 * tail), min(1.0, 2 * tail - observed))


def _normal_p(change: float, error: float) -> float:
    """Two-sided p value of a change with this standard error, taken as normal."""
    if error == 0:
        return 1.0 if change == 0 else 0.0
    return float(2 * norm.sf(abs(change) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """*p_values* adjusted for being several, in their order (Holm, Scandinavian Journal of Statistics 6, 1979).

    With all of those below 0.05 called differences, the probability that one of them is none is at most 0.05.
    """
    adjusted, largest, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """B against A. ``difference`` is B - A with its 95 % bootstrap interval; ``probability`` that B is better.

    ``p`` is two-sided: McNemar's mid-p where there is one (top-1 and top-5 of one seed), else that of the difference
    over its bootstrap standard error, taken as normal. Values are means over the seeds.
    """

    metric: ComparedMetric
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    probability: float
    num_samples: int
    mcnemar: McNemar | None = None
    p: float = 1.0
    num_seeds: int = 1

    @property
    def in_points(self) -> bool:
        """True for shares, which are shown in points of a hundred; larger is better. Else smaller is better."""
        return self.metric in _POINTS

    @property
    def drop(self) -> tuple[float, float, float]:
        """By how much B is worse than A, with its 95 % interval: in points for shares, else in the metric's unit."""
        if self.in_points:
            return -100 * self.difference, -100 * self.high, -100 * self.low
        return self.difference, self.low, self.high

    def sentence(self, a: str, b: str) -> str:
        """For people: the answer first, then the numbers behind it."""
        odds = "more than 99.9 %" if self.probability > 0.999 else "less than 0.1 %"
        if 0.001 <= self.probability <= 0.999:
            odds = f"{self.probability:.1%}".replace("%", " %")
        text = f"{b} is better than {a} with probability {odds}: {self._values()}, {self.num_samples:,} samples"
        if self.num_seeds > 1:
            return text + f", mean over {self.num_seeds} seeds, p = {self.p:.2g}."
        if self.mcnemar is None:
            return text + "."
        test = self.mcnemar
        return (
            text + f"; only {b} is right on {test.only_b:,}, only {a} on {test.only_a:,}, McNemar p = {test.mid_p:.2g}."
        )

    def _values(self) -> str:
        scale, unit, digits = (100, " points", 2) if self.metric in _POINTS else (1, "", 4)
        sign = " %" if self.metric in _POINTS else ""
        a, b = (f"{scale * value:.{digits}f}{sign}" for value in (self.value_a, self.value_b))
        change, low, high = (f"{scale * value:+.{digits}f}" for value in (self.difference, self.low, self.high))
        name = _POINTS.get(self.metric, self.metric)
        return f"{name} {a} -> {b}, difference {change}{unit} (95 % interval {low} to {high})"


def compare(a: Outcomes, b: Outcomes, metric: ComparedMetric = "top1", seed: int = 0) -> Comparison:
    """Paired comparison. Samples are matched by key, in any order.

    Raises InputError when the test samples or their labels are not the same, or when the outcomes do not hold what
    *metric* is computed from.
    """
    return compare_seeds([(a, b)], metric, seed)


def compare_seeds(
    pairs: Sequence[tuple[Outcomes, Outcomes]], metric: ComparedMetric = "top1", seed: int = 0
) -> Comparison:
    """Paired comparison of (A, B) of each of S seeds on the same test samples; *seed* names the draws.

    The value of a sample (right or not, or its loss) is averaged over the seeds of A, and over those of B, and the
    differences of the N samples are bootstrapped. mAP has no value of a sample: there each draw's mAP is averaged over
    the seeds. The answer is for the mean of these seeds on other test samples. It is not for other seeds, since the
    draws are of samples. With one pair it is ``compare``. Raises InputError as that does, and for no pair at all.
    """
    if not pairs:
        raise InputError("cannot compare: nothing was given")
    matched = [_in_order(a, b) for a, b in pairs]
    if any(a.keys != matched[0][0].keys for a, _ in matched):
        raise InputError("cannot compare: not all seeds have the same test samples")
    if metric == "mAP":
        return _compare_map(matched, seed)
    values_a = np.stack([_values(a, metric) for a, _ in matched])
    values_b = np.stack([_values(b, metric) for _, b in matched])
    if metric in ("top1", "top5") and len(pairs) == 1:
        return _compare_right(metric, values_a[0] > 0, values_b[0] > 0, seed)
    change = (values_b - values_a).mean(axis=0)
    if metric == "mean_per_class":
        labels = matched[0][0].labels
        means_a, means_b = (_ClassMean(labels, values.mean(axis=0)) for values in (values_a, values_b))
        drawn = bootstrap(_ClassMean(labels, change), len(labels), seed, _DRAWS)
        return _comparison(metric, means_a.value, means_b.value, drawn, len(labels), num_seeds=len(pairs))
    drawn = bootstrap_mean(change, seed, _DRAWS)
    return _comparison(metric, values_a.mean(), values_b.mean(), drawn, change.size, num_seeds=len(pairs))


def can_compare(outcomes: Outcomes, metric: ComparedMetric) -> bool:
    """True when *outcomes* hold what *metric* is computed from."""
    if metric == "mAP":
        return outcomes.scores is not None and outcomes.targets is not None
    try:
        _values(outcomes, metric)
    except InputError:
        return False
    return True


def _compare_right(
    metric: ComparedMetric, right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], seed: int
) -> Comparison:
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    cells = resampled_cells(np.array([only_a, only_b, len(right_a) - only_a - only_b]), seed, _CELL_DRAWS)
    drawn = (cells[:, 1] - cells[:, 0]) / len(right_a)
    return _comparison(metric, right_a.mean(), right_b.mean(), drawn, len(right_a), mcnemar(only_a, only_b))


class _ClassMean:
    """Weights (b, N) -> (b,): the mean over classes of the weighted mean of *values* in each.

    Classes without a sample in a draw are left out of its mean.
    """

    def __init__(self, labels_N: NDArray[np.int64], values_N: NDArray[np.float64]) -> None:
        self._order = np.argsort(labels_N, kind="stable")
        self._values = values_N[self._order]
        self._starts = np.flatnonzero(np.diff(labels_N[self._order], prepend=-1))

    @property
    def value(self) -> float:
        """With every sample once."""
        return float(self(np.ones((1, len(self._values)), np.float32))[0])

    def __call__(self, weights_bN: NDArray[np.float32]) -> NDArray[np.float64]:
        weights = weights_bN[:, self._order].astype(np.float64)
        totals = np.add.reduceat(weights, self._starts, axis=1)
        sums = np.add.reduceat(weights * self._values, self._starts, axis=1)
        means = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
        mean: NDArray[np.float64] = means.sum(axis=1) / (totals > 0).sum(axis=1)
        return mean


def _in_order(a: Outcomes, b: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Both with their samples sorted by key."""
    order_a, order_b = _matching_rows(a, b)
    return _take_rows(a, order_a), _take_rows(b, order_b)


def _take_rows(outcomes: Outcomes, rows: NDArray[np.int64]) -> Outcomes:
    fields = {name: value for name, value in vars(outcomes).items() if name != "keys"}
    taken: dict[str, Any] = {name: None if value is None else value[rows] for name, value in fields.items()}
    return Outcomes(tuple(outcomes.keys[row] for row in rows), **taken)


def _matching_rows(a: Outcomes, b: Outcomes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of each by key. Raises InputError when samples or labels are not the same."""
    order_a, order_b = np.argsort(np.array(a.keys)), np.argsort(np.array(b.keys))
    if not a.keys or len(a.keys) != len(b.keys) or (np.array(a.keys)[order_a] != np.array(b.keys)[order_b]).any():
        raise InputError(
            f"cannot compare: {len(a.keys)} and {len(b.keys)} test samples are not the same ones",
            "compare evaluations of one task",
        )
    same = np.array_equal(a.labels[order_a], b.labels[order_b]) and (a.targets is None) == (b.targets is None)
    if a.targets is not None and b.targets is not None:
        same = same and np.array_equal(a.targets[order_a], b.targets[order_b])
    if not same:
        raise InputError("cannot compare: the same test samples have other labels", "compare evaluations of one task")
    return order_a, order_b


def _values(outcomes: Outcomes, metric: ComparedMetric) -> NDArray[np.float64]:
    """(N,) what *metric* is the mean of."""
    return _losses(outcomes) if metric == "nll" else _right(outcomes, metric).astype(np.float64)


def _losses(outcomes: Outcomes) -> NDArray[np.float64]:
    if outcomes.nll is None or np.isnan(outcomes.nll).any():
        raise InputError("cannot compare nll: the outcomes hold no probabilities")
    return outcomes.nll.astype(np.float64)


def _right(outcomes: Outcomes, metric: ComparedMetric) -> NDArray[np.bool_]:
    if outcomes.targets is not None:
        raise InputError(f"cannot compare {metric}: samples have several labels", "compare mAP")
    if metric != "top5":
        right: NDArray[np.bool_] = outcomes.predictions == outcomes.labels
    elif outcomes.ranks is None:
        raise InputError(f"cannot compare {metric}: the outcomes hold no ranks")
    else:
        right = outcomes.ranks < 5
    return right


def _compare_map(matched: Sequence[tuple[Outcomes, Outcomes]], seed: int) -> Comparison:
    values, drawn = np.zeros(2), np.zeros(_DRAWS)
    for pair in matched:
        for side, outcomes in enumerate(pair):
            if outcomes.scores is None or outcomes.targets is None:
                raise InputError("cannot compare mAP: the outcomes are not of samples with several labels")
            values[side] += mean_average_precision(outcomes.scores, outcomes.targets) / len(matched)
            of_side = resampled_map(outcomes.scores, outcomes.targets, seed, _DRAWS)
            drawn += (of_side if side else -of_side) / len(matched)
    return _comparison("mAP", values[0], values[1], drawn, len(matched[0][0].keys), num_seeds=len(matched))


def _comparison(
    metric: ComparedMetric,
    value_a: float,
    value_b: float,
    drawn_B: NDArray[np.float64],
    num_samples: int,
    test: McNemar | None = None,
    num_seeds: int = 1,
) -> Comparison:
    """Draws without a difference count half for each side."""
    better = drawn_B if metric in _POINTS else -drawn_B
    probability = float((better > 0).mean() + 0.5 * (better == 0).mean())
    low, high = percentiles(drawn_B)
    change = float(value_b - value_a)
    return Comparison(
        metric,
        float(value_a),
        float(value_b),
        change,
        low,
        high,
        probability,
        num_samples,
        test,
        p=test.mid_p if test else _normal_p(change, float(drawn_B.std())),
        num_seeds=num_seeds,
    )
