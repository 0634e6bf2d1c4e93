"""Linear probe: logistic regression on standardised features, its penalty chosen on validation (SimCLR, arXiv
2002.05709, App. B).

Shapes: N samples, D features, K classes. Labels are (N,) class numbers, or (N, K) of 0 and 1 where samples have
several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics.multilabel import mean_average_precision
from pipeline.evaluate.probe.logistic import TOLERANCE, Fit, fit_path

Array = NDArray[np.float32]
Labels = NDArray[np.generic]
Weights = NDArray[np.float64]

_CHUNK = 8192  # samples whose scores under all penalties are in memory at once


class Standardiser:
    """Zero mean and unit variance, by the statistics of the training set; constant features become zero."""

    def __init__(self, features_ND: Array) -> None:
        self.mean = features_ND.mean(axis=0, dtype=np.float64)
        deviation = features_ND.std(axis=0, dtype=np.float64)
        self.scale = np.where(deviation > 1e-8, 1.0 / np.maximum(deviation, 1e-8), 0.0)

    def __call__(self, features_ND: Array) -> Array:
        """(N, D) -> (N, D)."""
        scaled: Array = ((features_ND - self.mean) * self.scale).astype(np.float32)
        return scaled


def fit_logistic(
    features_ND: Array,
    labels: Labels,
    num_classes: int,
    l2: float,
    *,
    max_iterations: int,
    tolerance: float = TOLERANCE,
    start: Weights | None = None,
) -> Fit:
    """Weights (K, D+1), the bias last: argmin of mean cross-entropy + l2/2 |W|^2; the bias is not penalised.

    See :mod:`~pipeline.evaluate.probe.logistic` for the convention, the method and the tolerance.
    """
    path = fit_path(
        features_ND, labels, num_classes, [l2], max_iterations=max_iterations, tolerance=tolerance, start=start
    )
    return next(path)


def probabilities(weights: Weights, features_ND: Array) -> Array:
    """(N, K) class probabilities that sum to one."""
    logits = features_ND.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def label_probabilities(weights: Weights, features_ND: Array) -> Array:
    """(N, K) probabilities of each label on its own, for weights that were fitted to several labels."""
    logits = features_ND.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
    shares: Array = (0.5 + 0.5 * np.tanh(0.5 * logits)).astype(np.float32)
    return shares


def fit_candidates(
    features_ND: Array,
    labels: Labels,
    num_classes: int,
    candidates: Sequence[float],
    max_iterations: int,
    tolerance: float = TOLERANCE,
) -> list[Fit]:
    """One fit for each l2, from strong to weak penalty, each starting at the one before."""
    if not candidates:
        raise ValueError("no l2 to choose from")
    ordered = sorted(set(candidates), reverse=True)
    path = fit_path(features_ND, labels, num_classes, ordered, max_iterations=max_iterations, tolerance=tolerance)
    return list(path)


def path_shares(fits: Sequence[Fit], features_MD: Array, labels: Labels) -> NDArray[np.float64]:
    """For each fit its top-1, or its mAP where labels are (M, K). All fits share their passes over the features."""
    kernels = np.concatenate([fit.weights[:, :-1] for fit in fits]).astype(np.float32)
    biases = np.concatenate([fit.weights[:, -1] for fit in fits]).astype(np.float32)
    found = []
    for start in range(0, len(features_MD), _CHUNK):
        scores = features_MD[start : start + _CHUNK] @ kernels.T + biases
        scores = scores.reshape(len(scores), len(fits), -1)
        found.append(scores.argmax(axis=2) if labels.ndim == 1 else scores)
    joined = np.concatenate(found)
    if labels.ndim == 1:
        shares: NDArray[np.float64] = (joined == labels[:, None]).mean(axis=0)
        return shares
    return np.array([mean_average_precision(joined[:, place], labels) for place in range(len(fits))])
