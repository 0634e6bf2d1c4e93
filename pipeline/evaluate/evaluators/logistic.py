"""Multinomial and multi-label logistic regression by L-BFGS: a path of penalties over one set of features.

The objective is the mean loss over samples + l2/2 |W|^2; the bias is not penalised. Where samples have one class each
the loss is the cross-entropy of a softmax, where they have several labels the sum over labels of the cross-entropies
of sigmoids. In scikit-learn's terms ``C = 1 / (N l2)``; for two classes, where it has one weight vector and we two of
opposite sign, ``C = 2 / (N l2)``.

The method is L-BFGS (Nocedal, Mathematics of Computation 35, 1980), with four things that save passes over the
features:

- The first guess of the Hessian is the product of the features' covariance and of the classes' mean curvature, plus l2.
  With the eigenvectors of both its inverse is a division; for strong penalties it is exact.
- Logits are linear in the weights: those of a step are computed once, and the line search then costs no pass.
- The part of the gradient and of the curvature pairs that comes from data does not depend on l2. So the next penalty
  of a path starts with the last one's logits, gradient and pairs, and its first step is free of a pass.
- Passes are in float32; sums, logits and weights in float64, so that steps add up without drift. Below a tolerance of
  1e-5 the last passes are in float64.

Memory: the features, and four arrays (K, N).

Shapes: N samples, D features, K classes. Logits and probabilities are (K, N): sums over a few classes then run along
memory (on (N, 10) a softmax took 15 times as long).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
TOLERANCE = 1e-5  # of the largest entry of the gradient; scikit-learn's own is 1e-4
_FLOAT32_TOLERANCE = 1e-5  # what float32 passes over standardised features resolve with a margin of about 100
_MAX_PAIRS = 10  # of curvature, as many as SciPy's L-BFGS-B and scikit-learn keep
_SLOPE_RATIO = 0.3  # the line search ends where the slope is this much of the first one
_MAX_TRIALS = 30  # of a line search
_MIN_CURVATURE_RATIO = 1e-6  # of the largest class curvature: a class below is taken as this curved: steps stay finite


@dataclass(frozen=True)
class Fit:
    """*weights* (K, D+1) float64 with the bias last; *iterations* that they took; *gradient*: its largest entry there.

    *converged*: that entry is at most the tolerance; if not, the iterations were used up before.
    """

    l2: float
    weights: Matrix
    iterations: int
    gradient: float
    converged: bool


def fit_path(
    features_ND: Array,
    labels: NDArray[np.generic],
    num_classes: int,
    l2s: Sequence[float],
    *,
    max_iterations: int,
    tolerance: float = TOLERANCE,
    start: Matrix | None = None,
) -> Iterator[Fit]:
    """One fit for each of *l2s*, in their order, each starting from the one before: name the strongest first.

    labels are (N,) class numbers, or (N, K) of 0 and 1 for sigmoid regression on several labels. A fit ends when the
    largest entry of the gradient is at most *tolerance*, or after *max_iterations* steps.
    """
    problem = _Problem(features_ND, labels, num_classes)
    point = problem.point_at(
        np.zeros((num_classes, features_ND.shape[1] + 1)) if start is None else problem.to_centred(start)
    )
    pairs: list[tuple[Matrix, Matrix]] = []
    for l2 in l2s:
        point, steps = _minimise(problem, point, pairs, l2, max(tolerance, _FLOAT32_TOLERANCE), max_iterations)
        reached = point
        if tolerance < _FLOAT32_TOLERANCE:
            exact = problem.in_float64()
            reached, more = _minimise(exact, exact.point_at(point.theta), [], l2, tolerance, max_iterations)
            steps += more
        gradient = problem.max_entry(problem.gradient(reached, l2))
        yield Fit(l2, problem.from_centred(reached.theta), steps, gradient, gradient <= tolerance)


def mean_loss(weights: Matrix, features_ND: Array, labels: NDArray[np.generic], l2: float = 0.0) -> float:
    """The objective at *weights* (K, D+1), in float64."""
    link = _link_of(labels)
    logits = torch.from_numpy(weights[:, :-1] @ features_ND.astype(np.float64).T + weights[:, -1:])
    losses = link.losses(logits, link.targets(labels, len(weights)).double())
    return float(losses.mean()) + l2 / 2 * float(np.square(weights[:, :-1]).sum())


class _LossLink(Protocol):
    """How logits become probabilities, and what the solver needs of the loss: softmax or sigmoid."""

    def targets(self, labels: NDArray[np.generic], num_classes: int) -> Tensor:
        """(K, N) float32 of 0 and 1."""

    def probabilities(self, logits_KN: Tensor) -> Tensor:
        """(K, N)."""

    def losses(self, logits_KN: Tensor, targets_KN: Tensor) -> Tensor:
        """(N) cross-entropies."""

    def curvature_along(self, p_KN: Tensor, step_KN: Tensor) -> Tensor:
        """Second derivative of the mean loss along a step of the logits: a scalar."""

    def class_curvature(self, p_KN: Tensor) -> Tensor:
        """(K, K) mean over samples of the loss's Hessian by the logits, float64."""

    def project(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Remove the part that cannot change the probabilities; classes are the first dimension."""


class _Softmax:
    """One class for each sample; labels (N,) are class numbers."""

    def targets(self, labels: NDArray[np.generic], num_classes: int) -> Tensor:
        """One-hot columns."""
        rows = torch.as_tensor(labels).long()
        return torch.zeros(num_classes, len(rows)).scatter_(0, rows[None], 1.0)

    def probabilities(self, logits_KN: Tensor) -> Tensor:
        """Columns sum to one."""
        return torch.softmax(logits_KN, dim=0)

    def losses(self, logits_KN: Tensor, targets_KN: Tensor) -> Tensor:
        """-log p of the true class."""
        return -(torch.log_softmax(logits_KN, dim=0) * targets_KN).sum(0)

    def curvature_along(self, p_KN: Tensor, step_KN: Tensor) -> Tensor:
        """Mean variance of the step under p."""
        weighted = p_KN * step_KN
        return torch.dot(weighted.flatten(), step_KN.flatten()) / p_KN.shape[1] - weighted.sum(0).square().mean()

    def class_curvature(self, p_KN: Tensor) -> Tensor:
        """Mean of diag(p) - pp'."""
        return torch.diag(p_KN.mean(1).double()) - (p_KN @ p_KN.T).double() / p_KN.shape[1]

    def project(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same number added to all classes changes nothing."""
        projected: NDArray[np.float64] = gradient - gradient.mean(axis=0)
        return projected


class _Sigmoid:
    """Any number of labels for each sample; labels (N, K) are 0 and 1. Each class is a regression of its own."""

    def targets(self, labels: NDArray[np.generic], num_classes: int) -> Tensor:
        """The columns as rows. Raises ValueError for another number of them."""
        if labels.shape[1] != num_classes:
            raise ValueError(f"labels have {labels.shape[1]} columns for {num_classes} classes")
        return torch.as_tensor(labels).float().T.contiguous()

    def probabilities(self, logits_KN: Tensor) -> Tensor:
        """Each class on its own."""
        return torch.sigmoid(logits_KN)

    def losses(self, logits_KN: Tensor, targets_KN: Tensor) -> Tensor:
        """Sum over classes of the binary cross-entropies."""
        return torch.nn.functional.binary_cross_entropy_with_logits(logits_KN, targets_KN, reduction="none").sum(0)

    def curvature_along(self, p_KN: Tensor, step_KN: Tensor) -> Tensor:
        """Mean of p(1-p) step^2, summed over classes."""
        return ((p_KN - p_KN.square()) * step_KN.square()).sum() / p_KN.shape[1]

    def class_curvature(self, p_KN: Tensor) -> Tensor:
        """Diagonal of the means of p(1-p)."""
        return torch.diag((p_KN - p_KN.square()).mean(1).double())

    def project(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Every class counts."""
        return gradient


def _link_of(labels: NDArray[np.generic]) -> _LossLink:
    """Softmax for class numbers (N,), sigmoid for 0/1 columns (N, K)."""
    return _Softmax() if labels.ndim == 1 else _Sigmoid()


@dataclass(frozen=True)
class _Point:
    """A point of the search: *theta* (K, D+1), the bias of centred features last; logits and errors (K, N).

    *data_gradient* (K, D+1): the gradient without that of the penalty.
    """

    theta: Matrix
    logits: torch.Tensor
    errors: torch.Tensor
    data_gradient: Matrix


class _Problem:
    """Passes over the features. The features are centred by arithmetic, not by a copy."""

    def __init__(self, features_ND: Array, labels: NDArray[np.generic], num_classes: int) -> None:
        self.link: _LossLink = _link_of(labels)
        self._x = torch.from_numpy(np.ascontiguousarray(features_ND, dtype=np.float32))
        self.targets = self.link.targets(labels, num_classes)
        self._mean = self._x.mean(0, dtype=torch.float64).numpy()
        covariance = (self._x.T @ self._x).double().numpy() / len(self._x) - np.outer(self._mean, self._mean)
        values, self._vectors = np.linalg.eigh(covariance)
        self._values = np.maximum(values, 0.0)
        self._in_float64: _Problem | None = None

    def in_float64(self) -> _Problem:
        """The same problem with passes in float64."""
        if self._in_float64 is None:
            double = object.__new__(_Problem)
            double.__dict__.update(self.__dict__)
            double._x, double.targets = self._x.double(), self.targets.double()
            self._in_float64 = double
        return self._in_float64

    def to_centred(self, weights: Matrix) -> Matrix:
        """Weights for the features -> theta, for the centred features."""
        bias = weights[:, -1] + weights[:, :-1] @ self._mean
        return self.link.project(np.hstack([weights[:, :-1], bias[:, None]]))

    def from_centred(self, theta: Matrix) -> Matrix:
        """Theta -> weights for the features."""
        return np.hstack([theta[:, :-1], (theta[:, -1] - theta[:, :-1] @ self._mean)[:, None]])

    def logits(self, theta: Matrix) -> torch.Tensor:
        """(K, N): one pass."""
        kernel = torch.from_numpy(np.ascontiguousarray(theta[:, :-1])).to(self._x.dtype)
        offset = torch.from_numpy(theta[:, -1] - theta[:, :-1] @ self._mean).to(self._x.dtype)
        return (kernel @ self._x.T).add_(offset[:, None]).double()

    def point_at(self, theta: Matrix, logits: torch.Tensor | None = None, errors: torch.Tensor | None = None) -> _Point:
        """Everything about a point: one pass over the features if its errors are known, else two."""
        if logits is None:
            logits = self.logits(theta)
        if errors is None:
            errors = self.errors(logits)
        sums = errors.sum(1, dtype=torch.float64).numpy()
        kernel = (errors @ self._x).double().numpy() - np.outer(sums, self._mean)
        return _Point(theta, logits, errors, self.link.project(np.hstack([kernel, sums[:, None]]) / len(self._x)))

    def errors(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities less targets (K, N)."""
        return self.link.probabilities(logits.to(self.targets.dtype)).sub_(self.targets)

    def gradient(self, point: _Point, l2: float) -> Matrix:
        """(K, D+1) of the whole objective."""
        return point.data_gradient + l2 * _penalised(point.theta)

    def max_entry(self, gradient: Matrix) -> float:
        """The largest entry of a gradient, by the weights for the features that are not centred."""
        kernel = gradient[:, :-1] + np.outer(gradient[:, -1], self._mean)
        return float(max(np.abs(kernel).max(initial=0.0), np.abs(gradient[:, -1]).max()))

    def preconditioner(self, point: _Point, l2: float) -> _Preconditioner:
        """The first guess of the inverse Hessian at *point*."""
        values, vectors = np.linalg.eigh(self.link.class_curvature(point.errors + self.targets).numpy())
        values = np.maximum(values, _MIN_CURVATURE_RATIO * max(values.max(), 1e-30))
        curved = values[:, None] * self._values + l2
        curved = np.maximum(curved, _MIN_CURVATURE_RATIO**2 * curved.max())
        return _Preconditioner(self._vectors, vectors, curved, values)


@dataclass(frozen=True)
class _Preconditioner:
    """Division by (class curvature x covariance + l2), and by the class curvature for the bias."""

    of_features: Matrix
    of_classes: Matrix
    curved: Matrix
    curved_bias: Matrix

    def __call__(self, right: Matrix) -> Matrix:
        turned = self.of_classes.T @ right
        kernel = ((turned[:, :-1] @ self.of_features) / self.curved) @ self.of_features.T
        return self.of_classes @ np.hstack([kernel, (turned[:, -1] / self.curved_bias)[:, None]])


def _minimise(
    problem: _Problem,
    point: _Point,
    pairs: list[tuple[Matrix, Matrix]],
    l2: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[_Point, int]:
    """L-BFGS steps until the gradient is small, the steps are used up, or rounding hides the slope. Adds to *pairs*."""
    gradient = problem.gradient(point, l2)
    if problem.max_entry(gradient) <= tolerance:
        return point, 0
    precondition = problem.preconditioner(point, l2)
    for iteration in range(max_iterations):
        gradient = problem.gradient(point, l2)
        if problem.max_entry(gradient) <= tolerance:
            return point, iteration
        direction = problem.link.project(-_two_loop_recursion(gradient, pairs, l2, precondition))
        following = _line_search(problem, point, direction, float((gradient * direction).sum()), l2)
        if following is None:
            if not pairs:
                return point, iteration
            pairs.clear()  # curvature of other points misleads at this one: start again from the first guess
            continue
        step = following.theta - point.theta
        pairs.append((step, following.data_gradient - point.data_gradient))
        del pairs[:-_MAX_PAIRS]
        point = following
    return point, max_iterations


def _two_loop_recursion(
    gradient: Matrix, pairs: list[tuple[Matrix, Matrix]], l2: float, precondition: _Preconditioner
) -> Matrix:
    """Inverse Hessian times gradient, by the pairs (step, change of the data's gradient) (Nocedal 1980)."""
    changes = [change + l2 * _penalised(step) for step, change in pairs]
    rates = [1.0 / float((step * change).sum()) for (step, _), change in zip(pairs, changes, strict=True)]
    shares = []
    for (step, _), change, rate in zip(reversed(pairs), reversed(changes), reversed(rates), strict=True):
        shares.append(rate * float((step * gradient).sum()))
        gradient = gradient - shares[-1] * change
    result = precondition(gradient)
    for (step, _), change, rate, share in zip(pairs, changes, rates, reversed(shares), strict=True):
        result += (share - rate * float((change * result).sum())) * step
    return result


def _line_search(problem: _Problem, point: _Point, direction: Matrix, slope: float, l2: float) -> _Point | None:
    """A point along *direction* where the slope is nearly zero; None if rounding hides that there is one.

    Along a line the objective is convex, so its slope is enough: Newton's method on it, kept inside the bracket.
    """
    if not slope < 0:
        return None
    logit_step = problem.logits(direction)
    step = logit_step.to(problem.targets.dtype)
    kernel, kernel_step = point.theta[:, :-1], direction[:, :-1]
    penalty_slope = l2 * float((kernel * kernel_step).sum())
    penalty_curvature = l2 * float((kernel_step * kernel_step).sum())
    low, high, length = 0.0, np.inf, 1.0
    for _ in range(_MAX_TRIALS):
        logits = torch.add(point.logits, logit_step, alpha=length)
        errors = problem.errors(logits)
        data_slope = float(torch.dot(errors.flatten(), step.flatten())) / step.shape[1]
        slope_at = data_slope + penalty_slope + length * penalty_curvature
        if abs(slope_at) <= _SLOPE_RATIO * -slope:
            return problem.point_at(point.theta + length * direction, logits, errors)
        low, high = (length, high) if slope_at < 0 else (low, length)
        curvature = float(problem.link.curvature_along(errors + problem.targets, step)) + penalty_curvature
        length = length - slope_at / curvature if curvature > 0 else np.inf
        if not low < length < high:
            length = (low + high) / 2 if high < np.inf else 4 * low
        if high - low < 1e-6 * high:
            break
    return None


def _penalised(theta: Matrix) -> Matrix:
    """Theta without its bias."""
    copy = theta.copy()
    copy[:, -1] = 0.0
    return copy
