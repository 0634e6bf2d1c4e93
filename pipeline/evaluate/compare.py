"""Is B better than A? From the stored outcomes of both on the same test samples.

Shapes: N samples, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from pipeline.base.errors import InputError
from pipeline.evaluate.metrics.intervals import bootstrap_mean, percentiles, resampled_cells
from pipeline.evaluate.metrics.multilabel import mean_average_precision, resampled_map
from pipeline.evaluate.metrics.outcomes import Outcomes

Compared = Literal["top1", "top5", "nll", "mAP"]
_POINTS = {"top1": "top-1", "top5": "top-5", "mAP": "mAP"}  # told in points of a hundred
CELL_DRAWS = 100_000  # where only counts are drawn, which costs nothing
DRAWS = 2000


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


@dataclass(frozen=True)
class Comparison:
    """B against A. ``difference`` is B - A with its 95 % bootstrap interval; ``probability`` that B is better."""

    metric: Compared
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    probability: float
    num_samples: int
    mcnemar: McNemar | None = None

    def sentence(self, a: str, b: str) -> str:
        """For people: the answer first, then what it rests on."""
        odds = "more than 99.9 %" if self.probability > 0.999 else "less than 0.1 %"
        if 0.001 <= self.probability <= 0.999:
            odds = f"{self.probability:.1%}".replace("%", " %")
        text = f"{b} is better than {a} with probability {odds}: {self._values()}, {self.num_samples:,} samples"
        if self.mcnemar is None:
            return text + "."
        seen = self.mcnemar
        return (
            text + f"; only {b} is right on {seen.only_b:,}, only {a} on {seen.only_a:,}, McNemar p = {seen.mid_p:.2g}."
        )

    def _values(self) -> str:
        scale, unit, digits = (100, " points", 2) if self.metric in _POINTS else (1, "", 4)
        sign = " %" if self.metric in _POINTS else ""
        a, b = (f"{scale * value:.{digits}f}{sign}" for value in (self.value_a, self.value_b))
        change, low, high = (f"{scale * value:+.{digits}f}" for value in (self.difference, self.low, self.high))
        name = _POINTS.get(self.metric, self.metric)
        return f"{name} {a} -> {b}, difference {change}{unit} (95 % interval {low} to {high})"


def mcnemar(only_a: int, only_b: int) -> McNemar:
    """Of *only_a* samples on which A alone is right, and *only_b* on which B alone is."""
    trials, fewer = only_a + only_b, min(only_a, only_b)
    if not trials:
        return McNemar(only_a, only_b, 1.0, 1.0)
    tail, seen = float(binom.cdf(fewer, trials, 0.5)), float(binom.pmf(fewer, trials, 0.5))
    return McNemar(only_a, only_b, min(1.0, 2 * tail), min(1.0, 2 * tail - seen))


def compare(a: Outcomes, b: Outcomes, metric: Compared = "top1", seed: int = 0) -> Comparison:
    """Paired comparison. Samples are matched by key, in any order.

    Raises InputError when the test samples or their labels are not the same, or when *metric* cannot be told from the
    outcomes.
    """
    order_a, order_b = _matched(a, b)
    if metric == "mAP":
        return _compare_map(a, b, order_a, order_b, seed)
    if metric == "nll":
        losses_a, losses_b = _losses(a)[order_a], _losses(b)[order_b]
        drawn = bootstrap_mean(losses_b - losses_a, seed, DRAWS)
        return _comparison(metric, losses_a.mean(), losses_b.mean(), drawn, len(losses_a))
    right_a, right_b = _right(a, metric)[order_a], _right(b, metric)[order_b]
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    cells = resampled_cells(np.array([only_a, only_b, len(right_a) - only_a - only_b]), seed, CELL_DRAWS)
    drawn = (cells[:, 1] - cells[:, 0]) / len(right_a)
    return _comparison(metric, right_a.mean(), right_b.mean(), drawn, len(right_a), mcnemar(only_a, only_b))


def _matched(a: Outcomes, b: Outcomes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


def _losses(outcomes: Outcomes) -> NDArray[np.float64]:
    if outcomes.nll is None or np.isnan(outcomes.nll).any():
        raise InputError("cannot compare nll: the outcomes hold no probabilities")
    return outcomes.nll.astype(np.float64)


def _right(outcomes: Outcomes, metric: Compared) -> NDArray[np.bool_]:
    if outcomes.targets is not None:
        raise InputError(f"cannot compare {metric}: samples have several labels", "compare mAP")
    if metric == "top1":
        right: NDArray[np.bool_] = outcomes.predictions == outcomes.labels
    elif outcomes.ranks is None:
        raise InputError(f"cannot compare {metric}: the outcomes hold no ranks")
    else:
        right = outcomes.ranks < 5
    return right


def _compare_map(
    a: Outcomes, b: Outcomes, order_a: NDArray[np.int64], order_b: NDArray[np.int64], seed: int
) -> Comparison:
    if a.scores is None or b.scores is None or a.targets is None:
        raise InputError("cannot compare mAP: the outcomes are not of samples with several labels")
    targets = a.targets[order_a]
    of_a, of_b = a.scores[order_a], b.scores[order_b]
    drawn = resampled_map(of_b, targets, seed, DRAWS) - resampled_map(of_a, targets, seed, DRAWS)
    values = mean_average_precision(of_a, targets), mean_average_precision(of_b, targets)
    return _comparison("mAP", *values, drawn, len(targets))


def _comparison(
    metric: Compared,
    value_a: float,
    value_b: float,
    drawn_B: NDArray[np.float64],
    num_samples: int,
    test: McNemar | None = None,
) -> Comparison:
    """Draws without a difference count half for each side."""
    better = -drawn_B if metric == "nll" else drawn_B
    probability = float((better > 0).mean() + 0.5 * (better == 0).mean())
    low, high = percentiles(drawn_B)
    return Comparison(
        metric, float(value_a), float(value_b), float(value_b - value_a), low, high, probability, num_samples, test
    )
