"""Linear probe: multinomial logistic regression by L-BFGS (SimCLR, arXiv 2002.05709, App. B).

Shapes: N samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float32]


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
    labels_N: NDArray[np.int64],
    num_classes: int,
    l2: float,
    *,
    max_iterations: int,
    start: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Weights (K, D+1), the bias last: argmin of mean cross-entropy + l2/2 |W|^2; the bias is not penalised."""
    x = torch.from_numpy(np.ascontiguousarray(features_ND))
    y = torch.from_numpy(labels_N)
    num_features = x.shape[1]

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        packed = torch.from_numpy(flat.reshape(num_classes, num_features + 1).astype(np.float32))
        weights, bias = packed[:, :-1], packed[:, -1]
        log_p = torch.log_softmax((x @ weights.T + bias).double(), dim=1)
        loss = -log_p.gather(1, y[:, None]).mean() + l2 / 2 * weights.double().square().sum()
        error = log_p.exp()
        error[torch.arange(len(y)), y] -= 1
        error = (error / len(y)).float()
        gradient = torch.cat([error.T @ x + l2 * weights, error.sum(0)[:, None]], dim=1)
        return loss.item(), gradient.double().numpy().ravel()

    first = np.zeros(num_classes * (num_features + 1)) if start is None else start.ravel()
    options = {"maxiter": max_iterations, "gtol": 1e-5, "ftol": 1e-8}
    solution = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    weights: NDArray[np.float64] = solution.x.reshape(num_classes, num_features + 1)
    return weights


def probabilities(weights: NDArray[np.float64], features_ND: Array) -> Array:
    """(N, K) class probabilities."""
    logits = features_ND.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def choose_l2(
    train: tuple[Array, NDArray[np.int64]],
    validation: tuple[Array, NDArray[np.int64]],
    num_classes: int,
    candidates: Sequence[float],
    max_iterations: int,
) -> tuple[float, NDArray[np.float64]]:
    """The l2 with the best validation top-1 (ties: the larger), and its weights as a start for the refit.

    The path runs from strong to weak penalty, each fit starting at the one before.
    """
    best: tuple[float, float, NDArray[np.float64]] | None = None
    start: NDArray[np.float64] | None = None
    for l2 in sorted(candidates, reverse=True):
        start = fit_logistic(*train, num_classes, l2, max_iterations=max_iterations, start=start)
        right = float((probabilities(start, validation[0]).argmax(axis=1) == validation[1]).mean())
        if best is None or right > best[0]:
            best = (right, l2, start)
    if best is None:
        raise ValueError("no l2 to choose from")
    return best[1], best[2]
