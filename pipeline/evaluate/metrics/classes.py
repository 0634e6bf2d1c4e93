"""Metrics of samples with one class each.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics.intervals import DRAWS, bootstrap_mean, percentiles, resampled_cells, wilson
from pipeline.evaluate.metrics.outcomes import Outcomes
from pipeline.records.score import Metric


def top1(outcomes: Outcomes) -> Metric:
    """Share of samples whose prediction is their label; Wilson's interval."""
    return share_of("top1", int((outcomes.predictions == outcomes.labels).sum()), len(outcomes.keys))


def top5(outcomes: Outcomes) -> Metric:
    """Share of samples whose label is among the five classes put first; Wilson's interval."""
    if outcomes.ranks is None:
        raise ValueError("these outcomes hold no ranks")
    return share_of("top5", int((outcomes.ranks < 5).sum()), len(outcomes.keys))


def mean_per_class(outcomes: Outcomes, seed: int = 0, draws: int = DRAWS) -> Metric:
    """Mean over the classes that occur of the share that is right (VTAB and Pets report it); bootstrap interval.

    A class that a draw misses is left out of that draw's mean.
    """
    num_classes = int(outcomes.labels.max()) + 1
    right = outcomes.predictions == outcomes.labels
    cells = np.bincount(outcomes.labels * 2 + right, minlength=2 * num_classes)
    drawn = resampled_cells(cells, seed, draws)
    value = float(_class_mean(cells[None])[0])
    low, high = percentiles(_class_mean(drawn))
    return Metric(name="mean_per_class", value=value, low=low, high=high)


def nll(outcomes: Outcomes, seed: int = 0, draws: int = DRAWS) -> Metric:
    """Mean of -log p of what is true, natural logarithm; bootstrap interval."""
    if outcomes.nll is None or np.isnan(outcomes.nll).any():
        raise ValueError("these outcomes hold no probabilities")
    low, high = percentiles(bootstrap_mean(outcomes.nll, seed, draws))
    return Metric(name="nll", value=float(outcomes.nll.mean(dtype=np.float64)), low=low, high=high)


def confusion(outcomes: Outcomes, num_classes: int) -> NDArray[np.int64]:
    """(K, K) counts: rows are the true class, columns the prediction."""
    cells = np.bincount(outcomes.labels * num_classes + outcomes.predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def share_of(name: str, count: int, trials: int) -> Metric:
    """*count* of *trials*; Wilson's interval."""
    low, high = wilson(count, trials)
    return Metric(name=name, value=count / trials, low=low, high=high)


def _class_mean(cells_BC: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,) from counts of wrong and right in turn (B, 2K)."""
    wrong, right = cells_BC[:, 0::2], cells_BC[:, 1::2]
    trials = wrong + right
    shares = np.divide(right, trials, out=np.zeros(trials.shape), where=trials > 0)
    means: NDArray[np.float64] = shares.sum(axis=1) / (trials > 0).sum(axis=1)
    return means
