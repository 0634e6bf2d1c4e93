"""Values of the outcomes of test samples, with 95 % intervals: top-1, top-5, mean per class, mAP, NLL, ECE; the oracle
among candidates; mean and deviation over several trainings.

The expected calibration error is how far confidence is from the share that is right (Guo et al., arXiv 1706.04599).

Shapes: N samples, K classes, B draws of the bootstrap, b draws of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtrit

from pipeline.evaluate.metrics.intervals import (
    DRAWS,
    LEVEL,
    Values,
    bootstrap_mean,
    grouped_sums,
    percentiles,
    resampled,
    resampled_cells,
    wilson,
)
from pipeline.evaluate.metrics.outcomes import Outcomes
from pipeline.records.score import ORACLE_PREFIX, RUNS_MEAN, RUNS_STD, Metric

_TOP = 5  # with no more classes, top-5 is always right
_NUM_BINS = 15  # of equal width, as in Guo et al.
_MAX_RANKED = 80_000_000  # entries of scores over all draws: about two seconds
_MIN_DRAWS = 200  # what percentiles of 95 % need to mean something
_TAIL = (1 - LEVEL) / 2


def headline(outcomes: Outcomes) -> Metric:
    """What an evaluation is judged by: top-1, or mAP where samples have several labels."""
    return top1(outcomes) if outcomes.targets is None else mean_ap(outcomes)


def compute_metrics(outcomes: Outcomes, num_classes: int) -> tuple[Metric, ...]:
    """Every metric that *outcomes* allow, the headline first.

    Of samples with one label: top1, top5 of more than five classes, mean_per_class, and of probabilities nll and ece.
    Of samples with several labels: mAP, and of probabilities nll.
    """
    metrics = [headline(outcomes)]
    if outcomes.targets is None:
        metrics += [top5(outcomes)] if num_classes > _TOP and outcomes.ranks is not None else []
        metrics.append(mean_per_class(outcomes))
    if outcomes.nll is not None:
        metrics += [nll(outcomes)] if outcomes.targets is not None else [nll(outcomes), ece(outcomes)]
    return tuple(metrics)


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


def mean_ap(outcomes: Outcomes, seed: int = 0, draws: int = DRAWS) -> Metric:
    """mAP; bootstrap interval over samples, of fewer *draws* where there are many samples and labels."""
    if outcomes.scores is None or outcomes.targets is None:
        raise ValueError("these outcomes are not of samples with several labels")
    value = mean_average_precision(outcomes.scores, outcomes.targets)
    affordable = min(draws, max(_MIN_DRAWS, _MAX_RANKED // outcomes.scores.size))
    low, high = percentiles(resampled_map(outcomes.scores, outcomes.targets, seed, affordable))
    return Metric(name="mAP", value=value, low=low, high=high)


def nll(outcomes: Outcomes, seed: int = 0, draws: int = DRAWS) -> Metric:
    """Mean of -log p of the true label or labels, natural logarithm; bootstrap interval."""
    if outcomes.nll is None or np.isnan(outcomes.nll).any():
        raise ValueError("these outcomes hold no probabilities")
    low, high = percentiles(bootstrap_mean(outcomes.nll, seed, draws))
    return Metric(name="nll", value=float(outcomes.nll.mean(dtype=np.float64)), low=low, high=high)


def ece(outcomes: Outcomes, seed: int = 0, draws: int = DRAWS) -> Metric:
    """Mean over bins of confidence of |mean confidence - share right|, weighted by samples; bootstrap interval.

    A bin holds its lower edge; a confidence of 1 belongs to the last. Noise only adds to this value, more so in a
    resample: with few samples the interval lies above it.
    """
    if np.isnan(outcomes.probabilities).any():
        raise ValueError("these outcomes hold no probabilities")
    gaps_N, bins_N = _gaps(outcomes)
    count = len(gaps_N)
    value = float(np.abs(np.bincount(bins_N, gaps_N, _NUM_BINS)).sum() / count)
    drawn = np.abs(grouped_sums(gaps_N, bins_N, _NUM_BINS, seed, draws)).sum(axis=1) / count
    low, high = percentiles(drawn)
    return Metric(name="ece", value=value, low=min(low, value), high=max(high, value))


def confusion(outcomes: Outcomes, num_classes: int) -> NDArray[np.int64]:
    """(K, K) counts: rows are the true class, columns the prediction."""
    cells = np.bincount(outcomes.labels * num_classes + outcomes.predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def share_of(name: str, count: int, trials: int) -> Metric:
    """*count* of *trials*; Wilson's interval."""
    low, high = wilson(count, trials)
    return Metric(name=name, value=count / trials, low=low, high=high)


def oracle(candidates: Iterable[Metric], *, smaller_is_better: bool = False) -> Metric:
    """The best of the candidates' test values, named ``oracle_<metric>``. Its interval is that of the candidate alone:
    it does not cover the choosing.

    Raises ValueError when there are none, or when they are of several metrics.
    """
    metrics = list(candidates)
    names = {metric.name for metric in metrics}
    if len(names) != 1:
        raise ValueError(f"an oracle chooses among values of one metric, not {sorted(names)}")
    best = (min if smaller_is_better else max)(metrics, key=lambda metric: metric.value)
    return best.model_copy(update={"name": ORACLE_PREFIX + best.name})


def is_oracle(metric: Metric) -> bool:
    """True for a value that must not be reported as a result."""
    return metric.name.startswith(ORACLE_PREFIX)


def over_runs(name: str, shares: Sequence[float]) -> tuple[Metric, ...]:
    """``<name>_runs_mean`` and ``<name>_runs_std`` of *shares*, one of each training; nothing for a single one.

    The trainings are taken as normally distributed: Student's t interval for the mean (cut to 0..1), chi-square for
    the deviation. They estimate other seeds on the same test samples, not other samples.
    """
    if len(shares) < 2:
        return ()
    degrees = len(shares) - 1
    mean, std = float(np.mean(shares)), float(np.std(shares, ddof=1))
    half = float(stdtrit(degrees, 1 - _TAIL)) * std / math.sqrt(len(shares))
    low, high = (std * math.sqrt(degrees / float(chdtri(degrees, tail))) for tail in (_TAIL, 1 - _TAIL))
    return (
        Metric(name=f"{name}{RUNS_MEAN}", value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half)),
        Metric(name=f"{name}{RUNS_STD}", value=std, low=low, high=high),
    )


def average_precisions(scores_NK: NDArray[Any], targets_NK: NDArray[Any]) -> Values:
    """(K,) average precision of each label; NaN for one that no sample has."""
    ones = np.ones((1, len(scores_NK)))
    return np.concatenate(
        [_Ranking(scores, targets).value(ones) for scores, targets in zip(scores_NK.T, targets_NK.T, strict=True)]
    )


def mean_average_precision(scores_NK: NDArray[Any], targets_NK: NDArray[Any]) -> float:
    """Mean over the labels that occur of their average precision. Raises ValueError when none does.

    Average precision is scikit-learn's: the sum over thresholds of (recall gained) x precision, without interpolation;
    equal scores are one threshold.
    """
    precisions_K = average_precisions(scores_NK, targets_NK)
    if np.isnan(precisions_K).all():
        raise ValueError("no sample has any label")
    return float(np.nanmean(precisions_K))


def resampled_map(scores_NK: NDArray[Any], targets_NK: NDArray[Any], seed: int, draws: int = DRAWS) -> Values:
    """(B,) mAP under resampled weights: the same weights for the same N and seed, so two models can be paired."""
    rankings = [_Ranking(scores, targets) for scores, targets in zip(scores_NK.T, targets_NK.T, strict=True)]
    parts = []
    for weights in resampled(len(scores_NK), seed, draws):
        precisions_Kb = np.stack([ranking.value(weights) for ranking in rankings])
        occurs = ~np.isnan(precisions_Kb)
        parts.append(np.where(occurs, precisions_Kb, 0).sum(axis=0) / np.maximum(occurs.sum(axis=0), 1))
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


def _class_mean(cells_BC: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,) from counts of wrong and right in turn (B, 2K)."""
    wrong, right = cells_BC[:, 0::2], cells_BC[:, 1::2]
    trials = wrong + right
    shares = np.divide(right, trials, out=np.zeros(trials.shape), where=trials > 0)
    means: NDArray[np.float64] = shares.sum(axis=1) / (trials > 0).sum(axis=1)
    return means


def _gaps(outcomes: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N,) each sample's confidence less whether it is right, and its bin."""
    confidence = outcomes.probabilities.astype(np.float64)
    edges = np.linspace(0, 1, _NUM_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, _NUM_BINS - 1)
    return confidence - (outcomes.predictions == outcomes.labels), bins.astype(np.int64)
