"""How logits become probabilities, and what a loss needs of it: one class each, or several labels at once.

Both losses are means over samples; with several labels each sample's is a sum over labels.

Shapes: N samples, K classes. Arrays are (K, N): sums over a few classes then run along memory (on (N, 10) a softmax
took 15 times as long).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOWEST_SHARE = 1e-6  # of the largest class curvature: below it a class is taken as this curved, so steps stay finite


class Link(Protocol):
    """Softmax or sigmoid."""

    def targets(self, labels: NDArray[np.generic], num_classes: int) -> Tensor:
        """(K, N) float32 of 0 and 1."""

    def probabilities(self, logits_KN: Tensor) -> Tensor:
        """(K, N)."""

    def losses(self, logits_KN: Tensor, targets_KN: Tensor) -> Tensor:
        """(N) cross-entropies."""

    def bend(self, p_KN: Tensor, step_KN: Tensor) -> Tensor:
        """Second derivative of the mean loss along a step of the logits: a scalar."""

    def class_curvature(self, p_KN: Tensor) -> Tensor:
        """(K, K) mean over samples of the loss's Hessian by the logits, float64."""

    def level(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take out what cannot change the probabilities; classes stand in the first dimension."""


class Softmax:
    """One class for each sample; labels (N,) are class numbers."""

    def targets(self, labels: NDArray[np.generic], num_classes: int) -> Tensor:
        """One-hot columns."""
        known = torch.as_tensor(labels).long()
        return torch.zeros(num_classes, len(known)).scatter_(0, known[None], 1.0)

    def probabilities(self, logits_KN: Tensor) -> Tensor:
        """Columns sum to one."""
        return torch.softmax(logits_KN, dim=0)

    def losses(self, logits_KN: Tensor, targets_KN: Tensor) -> Tensor:
        """-log p of the true class."""
        return -(torch.log_softmax(logits_KN, dim=0) * targets_KN).sum(0)

    def bend(self, p_KN: Tensor, step_KN: Tensor) -> Tensor:
        """Mean variance of the step under p."""
        weighted = p_KN * step_KN
        return torch.dot(weighted.flatten(), step_KN.flatten()) / p_KN.shape[1] - weighted.sum(0).square().mean()

    def class_curvature(self, p_KN: Tensor) -> Tensor:
        """Mean of diag(p) - pp'."""
        return torch.diag(p_KN.mean(1).double()) - (p_KN @ p_KN.T).double() / p_KN.shape[1]

    def level(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same number added to all classes changes nothing."""
        levelled: NDArray[np.float64] = gradient - gradient.mean(axis=0)
        return levelled


class Sigmoid:
    """Any number of labels for each sample; labels (N, K) are 0 and 1. Each class is a regression of its own."""

    def targets(self, labels: NDArray[np.generic], num_classes: int) -> Tensor:
        """As given, turned."""
        if labels.shape[1] != num_classes:
            raise ValueError(f"labels have {labels.shape[1]} columns for {num_classes} classes")
        return torch.as_tensor(labels).float().T.contiguous()

    def probabilities(self, logits_KN: Tensor) -> Tensor:
        """Each class on its own."""
        return torch.sigmoid(logits_KN)

    def losses(self, logits_KN: Tensor, targets_KN: Tensor) -> Tensor:
        """Sum over classes of the binary cross-entropies."""
        return torch.nn.functional.binary_cross_entropy_with_logits(logits_KN, targets_KN, reduction="none").sum(0)

    def bend(self, p_KN: Tensor, step_KN: Tensor) -> Tensor:
        """Mean of p(1-p) step^2, summed over classes."""
        return ((p_KN - p_KN.square()) * step_KN.square()).sum() / p_KN.shape[1]

    def class_curvature(self, p_KN: Tensor) -> Tensor:
        """Diagonal of the means of p(1-p)."""
        return torch.diag((p_KN - p_KN.square()).mean(1).double())

    def level(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Every class counts."""
        return gradient


def link_of(labels: NDArray[np.generic]) -> Link:
    """Softmax for class numbers (N,), sigmoid for 0/1 columns (N, K)."""
    return Softmax() if labels.ndim == 1 else Sigmoid()
