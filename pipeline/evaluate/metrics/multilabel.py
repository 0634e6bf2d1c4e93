"""Mean average precision over labels, for samples with any number of them.

Average precision is scikit-learn's: the sum over thresholds of (recall gained) x precision, without interpolation;
equal scores are one threshold. Labels that no sample has are left out of the mean.

Shapes: N samples, K labels, b draws of a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics.intervals import DRAWS, percentiles, resampled
from pipeline.evaluate.metrics.outcomes import Outcomes
from pipeline.records.score import Metric

_MOST_RANKED = 80_000_000  # entries of scores over all draws: about two seconds
_FEWEST_DRAWS = 200  # what percentiles of 95 % need to mean something
Values = NDArray[np.float64]


def mean_ap(outcomes: Outcomes, seed: int = 0, draws: int = DRAWS) -> Metric:
    """mAP; bootstrap interval over samples, of fewer *draws* where there are many samples and labels."""
    if outcomes.scores is None or outcomes.targets is None:
        raise ValueError("these outcomes are not of samples with several labels")
    value = mean_average_precision(outcomes.scores, outcomes.targets)
    affordable = min(draws, max(_FEWEST_DRAWS, _MOST_RANKED // outcomes.scores.size))
    low, high = percentiles(resampled_map(outcomes.scores, outcomes.targets, seed, affordable))
    return Metric(name="mAP", value=value, low=low, high=high)


def average_precisions(scores_NK: NDArray[Any], targets_NK: NDArray[Any]) -> Values:
    """(K,) average precision of each label; NaN for one that no sample has."""
    ones = np.ones((1, len(scores_NK)))
    return np.concatenate(
        [_Ranking(scores, of).value(ones) for scores, of in zip(scores_NK.T, targets_NK.T, strict=True)]
    )


def mean_average_precision(scores_NK: NDArray[Any], targets_NK: NDArray[Any]) -> float:
    """Mean over the labels that occur. Raises ValueError when none does."""
    found = average_precisions(scores_NK, targets_NK)
    if np.isnan(found).all():
        raise ValueError("no sample has any label")
    return float(np.nanmean(found))


def resampled_map(scores_NK: NDArray[Any], targets_NK: NDArray[Any], seed: int, draws: int = DRAWS) -> Values:
    """(B,) mAP under resampled weights: the same weights for the same N and seed, so two models can be paired."""
    rankings = [_Ranking(scores, of) for scores, of in zip(scores_NK.T, targets_NK.T, strict=True)]
    parts = []
    for weights in resampled(len(scores_NK), seed, draws):
        found = np.stack([ranking.value(weights) for ranking in rankings])
        known = ~np.isnan(found)
        parts.append(np.where(known, found, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
    return np.concatenate(parts)


class _Ranking:
    """One label: samples from the largest score down, and where each threshold ends."""

    def __init__(self, scores_N: NDArray[Any], targets_N: NDArray[Any]) -> None:
        self._order = np.argsort(-scores_N, kind="stable")
        ranked = scores_N[self._order]
        self._ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        self._true = targets_N[self._order].astype(np.float64)

    def value(self, weights_bN: NDArray[Any]) -> Values:
        """(b,) average precision of weighted samples."""
        weights = weights_bN[:, self._order].astype(np.float64)
        taken = weights.cumsum(axis=1)[:, self._ends]
        true = (weights * self._true).cumsum(axis=1)[:, self._ends]
        gained = np.diff(true, axis=1, prepend=0.0)
        precision = np.divide(true, taken, out=np.zeros_like(true), where=taken > 0)
        total = true[:, -1]
        values = np.full(len(weights), np.nan)
        np.divide((gained * precision).sum(axis=1), total, out=values, where=total > 0)
        return values
