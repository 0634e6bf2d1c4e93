"""Few-shot: closed-form ridge regression to +-1 targets (big_vision evaluators/fewshot_lsr.py, ViT section 4.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.seeds import generator

Array = NDArray[np.float32]
_BIAS = 100.0  # the constant column that stands for a bias, hardly penalised (fewshot_lsr.py: BIAS_CONSTANT)


def choose_shots(labels_N: NDArray[np.int64], num_classes: int, shots: int, seed: int) -> NDArray[np.int64]:
    """Rows of *shots* samples per class. For one seed fewer shots are a part of more."""
    rows = []
    for label in range(num_classes):
        of_class = np.flatnonzero(labels_N == label)
        if len(of_class) < shots:
            raise InputError(f"class {label} has {len(of_class)} training samples, {shots}-shot needs {shots}")
        rows.append(generator(seed, "fewshot", label).permutation(of_class)[:shots])
    return np.concatenate(rows)


def fit_ridge(features_ND: Array, labels_N: NDArray[np.int64], num_classes: int, l2: float) -> _Ridge:
    """Solve by eigendecomposition of X'X when N >= D, else of XX'."""
    x64 = features_ND.astype(np.float64)
    mean, std = x64.mean(axis=0), x64.std(axis=0) + 1e-5
    x = _with_bias((x64 - mean) / std)
    targets = 2.0 * np.eye(num_classes)[labels_N] - 1.0
    if x.shape[0] >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        weights = vectors @ ((vectors.T @ (x.T @ targets)) / (values + l2)[:, None])
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        weights = x.T @ (vectors @ ((vectors.T @ targets) / (values + l2)[:, None]))
    return _Ridge(mean, std, weights)


class _Ridge:
    def __init__(self, mean: NDArray[np.float64], std: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        self._mean, self._std, self._weights = mean, std, weights

    def scores(self, features_MD: Array) -> NDArray[np.float64]:
        """(M, K) regression outputs; the largest is the prediction."""
        return _with_bias((features_MD - self._mean) / self._std) @ self._weights


def _with_bias(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([x, np.full((len(x), 1), _BIAS)], axis=1)
