"""How logits become probabilities, and what a loss needs of it: one class each, or several labels at once.

Both losses are means over samples; with several labels each sample's is a sum over labels.

Shapes: N samples, K classes. Arrays are (K, N): sums over a few classes then run along memory (on (N, 10) a softmax
took 15 times as long).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOWEST_SHARE = 1e-6  # of the largest class curvature: below it a class is taken as this curved, so steps stay finite


class LossLink(Protocol):
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


class SoftmaxLink:
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


class SigmoidLink:
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


def link_of(labels: NDArray[np.generic]) -> LossLink:
    """Softmax for class numbers (N,), sigmoid for 0/1 columns (N, K)."""
    return SoftmaxLink() if labels.ndim == 1 else SigmoidLink()


Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
TOLERANCE = 1e-5  # of the largest entry of the gradient; scikit-learn's own is 1e-4
_FLOAT32_REACHES = 1e-5  # what float32 passes over standardised features resolve with a margin of about 100
_PAIRS = 10  # of curvature, as many as SciPy's L-BFGS-B and scikit-learn keep
_FLATTER = 0.3  # the line search ends where the slope is this much of the first one
_TRIALS = 30


@dataclass(frozen=True)
class Fit:
    """weights (K, D+1) float64 with the bias last; how many steps they took; the largest entry of the gradient
    there; and whether that is small enough, or the steps were used up before."""

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
    """One fit for each of *l2s*, in their order, each starting from the one before: give the strongest first.

    labels are (N,) class numbers, or (N, K) of 0 and 1 for sigmoid regression on several labels. A fit ends when the
    largest entry of the gradient is at most *tolerance*, or after *max_iterations* steps.
    """
    problem = _Problem(features_ND, labels, num_classes)
    point = problem.at(np.zeros((num_classes, features_ND.shape[1] + 1)) if start is None else problem.inward(start))
    pairs: list[tuple[Matrix, Matrix]] = []
    for l2 in l2s:
        point, steps = _minimise(problem, point, pairs, l2, max(tolerance, _FLOAT32_REACHES), max_iterations)
        reached = point
        if tolerance < _FLOAT32_REACHES:
            exact = problem.in_float64()
            reached, more = _minimise(exact, exact.at(point.theta), [], l2, tolerance, max_iterations)
            steps += more
        left = problem.largest(problem.gradient(reached, l2))
        yield Fit(l2, problem.outward(reached.theta), steps, left, left <= tolerance)


def mean_loss(weights: Matrix, features_ND: Array, labels: NDArray[np.generic], l2: float = 0.0) -> float:
    """The objective at *weights* (K, D+1), in float64."""
    link = link_of(labels)
    logits = torch.from_numpy(weights[:, :-1] @ features_ND.astype(np.float64).T + weights[:, -1:])
    losses = link.losses(logits, link.targets(labels, len(weights)).double())
    return float(losses.mean()) + l2 / 2 * float(np.square(weights[:, :-1]).sum())


@dataclass(frozen=True)
class _Point:
    """theta (K, D+1), the bias of centred features last; logits and errors (K, N); the data's part of the gradient."""

    theta: Matrix
    logits: torch.Tensor
    errors: torch.Tensor
    from_data: Matrix


class _Problem:
    """Passes over the features. The features are centred by arithmetic, not by a copy."""

    def __init__(self, features_ND: Array, labels: NDArray[np.generic], num_classes: int) -> None:
        self.link: LossLink = link_of(labels)
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
            other = object.__new__(_Problem)
            other.__dict__.update(self.__dict__)
            other._x, other.targets = self._x.double(), self.targets.double()
            self._in_float64 = other
        return self._in_float64

    def inward(self, weights: Matrix) -> Matrix:
        """Weights for the features as given -> theta, for the centred ones."""
        bias = weights[:, -1] + weights[:, :-1] @ self._mean
        return self.link.level(np.hstack([weights[:, :-1], bias[:, None]]))

    def outward(self, theta: Matrix) -> Matrix:
        """The other way."""
        return np.hstack([theta[:, :-1], (theta[:, -1] - theta[:, :-1] @ self._mean)[:, None]])

    def logits(self, theta: Matrix) -> torch.Tensor:
        """(K, N): one pass."""
        kernel = torch.from_numpy(np.ascontiguousarray(theta[:, :-1])).to(self._x.dtype)
        offset = torch.from_numpy(theta[:, -1] - theta[:, :-1] @ self._mean).to(self._x.dtype)
        return (kernel @ self._x.T).add_(offset[:, None]).double()

    def at(self, theta: Matrix, logits: torch.Tensor | None = None, errors: torch.Tensor | None = None) -> _Point:
        """Everything about a place: one pass if its errors are known, else two."""
        if logits is None:
            logits = self.logits(theta)
        if errors is None:
            errors = self.errors(logits)
        sums = errors.sum(1, dtype=torch.float64).numpy()
        kernel = (errors @ self._x).double().numpy() - np.outer(sums, self._mean)
        return _Point(theta, logits, errors, self.link.level(np.hstack([kernel, sums[:, None]]) / len(self._x)))

    def errors(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities less targets (K, N)."""
        return self.link.probabilities(logits.to(self.targets.dtype)).sub_(self.targets)

    def gradient(self, point: _Point, l2: float) -> Matrix:
        """(K, D+1) of the whole objective."""
        return point.from_data + l2 * _penalised(point.theta)

    def largest(self, gradient: Matrix) -> float:
        """Its largest entry, by the weights for the features as given."""
        kernel = gradient[:, :-1] + np.outer(gradient[:, -1], self._mean)
        return float(max(np.abs(kernel).max(initial=0.0), np.abs(gradient[:, -1]).max()))

    def divider(self, point: _Point, l2: float) -> _Divider:
        """The first guess of the inverse Hessian around *point*."""
        values, vectors = np.linalg.eigh(self.link.class_curvature(point.errors + self.targets).numpy())
        values = np.maximum(values, LOWEST_SHARE * max(values.max(), 1e-30))
        curved = values[:, None] * self._values + l2
        curved = np.maximum(curved, LOWEST_SHARE**2 * curved.max())
        return _Divider(self._vectors, vectors, curved, values)


@dataclass(frozen=True)
class _Divider:
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
    """Go down until the gradient is small, the steps are used up, or rounding hides the slope. Adds to *pairs*."""
    gradient = problem.gradient(point, l2)
    if problem.largest(gradient) <= tolerance:
        return point, 0
    divide = problem.divider(point, l2)
    for iteration in range(max_iterations):
        gradient = problem.gradient(point, l2)
        if problem.largest(gradient) <= tolerance:
            return point, iteration
        direction = problem.link.level(-_two_loops(gradient, pairs, l2, divide))
        found = _line_search(problem, point, direction, float((gradient * direction).sum()), l2)
        if found is None:
            if not pairs:
                return point, iteration
            pairs.clear()  # the curvature seen elsewhere misleads here: start again from the first guess
            continue
        step = found.theta - point.theta
        pairs.append((step, found.from_data - point.from_data))
        del pairs[:-_PAIRS]
        point = found
    return point, max_iterations


def _two_loops(gradient: Matrix, pairs: list[tuple[Matrix, Matrix]], l2: float, divide: _Divider) -> Matrix:
    """Inverse Hessian times gradient, by the pairs (step, change of the data's gradient) (Nocedal 1980)."""
    changes = [change + l2 * _penalised(step) for step, change in pairs]
    rates = [1.0 / float((step * change).sum()) for (step, _), change in zip(pairs, changes, strict=True)]
    shares = []
    for (step, _), change, rate in zip(reversed(pairs), reversed(changes), reversed(rates), strict=True):
        shares.append(rate * float((step * gradient).sum()))
        gradient = gradient - shares[-1] * change
    result = divide(gradient)
    for (step, _), change, rate, share in zip(pairs, changes, rates, reversed(shares), strict=True):
        result += (share - rate * float((change * result).sum())) * step
    return result


def _line_search(problem: _Problem, point: _Point, direction: Matrix, slope: float, l2: float) -> _Point | None:
    """A place along *direction* where the slope is nearly gone; None if rounding hides that there is one.

    Along a line the objective is convex, so its slope alone tells the way: Newton's method on it, kept inside the
    bracket.
    """
    if not slope < 0:
        return None
    moved = problem.logits(direction)
    step = moved.to(problem.targets.dtype)
    kernel, way = point.theta[:, :-1], direction[:, :-1]
    here, there = l2 * float((kernel * way).sum()), l2 * float((way * way).sum())
    low, high, length = 0.0, np.inf, 1.0
    for _ in range(_TRIALS):
        logits = torch.add(point.logits, moved, alpha=length)
        errors = problem.errors(logits)
        now = float(torch.dot(errors.flatten(), step.flatten())) / moved.shape[1] + here + length * there
        if abs(now) <= _FLATTER * -slope:
            return problem.at(point.theta + length * direction, logits, errors)
        low, high = (length, high) if now < 0 else (low, length)
        bend = float(problem.link.bend(errors + problem.targets, step)) + there
        length = length - now / bend if bend > 0 else np.inf
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
