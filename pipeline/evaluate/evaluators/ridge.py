"""Ridge regression to +-1 targets from sums over a stream: features (N, D) are never in memory at once.

One pass adds up X'X, X'Y and the column sums; every l2 is then a division after one eigendecomposition. All sums are
in float64, block by block, around the mean of the first block so that nothing cancels: scores equal a direct solve
over all samples to 1e-7 of the largest.

Convention: features standardised by mean and (population std + 1e-5); argmin of |X W + b - T|^2 + l2 |W|^2 summed
over samples, targets T = 2 Y - 1, the bias b not penalised. For the same strength with more samples let l2 grow with
N.

Shapes: N samples, D features, K classes, n samples of a part, M queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import Candidate, Values, best_candidate, layer_specs, settings_of
from pipeline.evaluate.features.storage import FeatureSpec
from pipeline.evaluate.metrics.classification import mean_average_precision
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import RidgeSettings
from pipeline.evaluate.splits import TestPart, check_held_out
from pipeline.evaluate.task_data import TaskData, open_task

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
Part = tuple[Array, NDArray[np.generic]]  # features (n, D); labels (n,) class numbers, or (n, K) of 0 and 1
_BLOCK = 4096  # samples that are held in float64 at once
_EPSILON = 1e-5  # added to the standard deviation, as the few-shot protocol does


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Ridge regression from streamed sums; l2 chosen on the validation part, and grown with N for the refit.

    The oracle chooses among every l2, refitted in the same way, of the chosen layer.
    """
    settings: RidgeSettings = settings_of(planned)
    data, specs = open_task(workspace, planned), layer_specs(planned)
    data.prepare(specs)
    best = best_candidate(_candidate(data, spec, settings.l2) for spec in specs)
    fit, validation = best.refit_state
    growth = (fit.num_samples + validation.num_samples) / fit.num_samples
    fit.merge(validation)
    l2s = sorted(set(settings.l2), reverse=True)
    solutions = fit_ridge(fit, [l2 * growth for l2 in l2s])
    test, scores = _test_scores(data, best.spec, solutions[l2s.index(best.chosen["l2"])])
    outcomes = data.outcomes(test.keys, test.labels, scores, calibrated=False)
    shares = ridge_shares(solutions, ((part.features, part.labels) for part in data.test_stream(best.spec)))
    oracle = data.oracle(test, shares, lambda index: _test_scores(data, best.spec, solutions[index])[1])
    return EvalOutput(outcomes, data.num_classes, best.chosen, metrics=(oracle,))


def _candidate(data: TaskData, spec: FeatureSpec, l2s: Sequence[float]) -> Candidate:
    """The best l2 of a layer, in two passes over the training features: one adds up, one compares."""
    fit = validation = None
    for part, is_held_out in data.train_stream(spec):
        if fit is None or validation is None:
            fit, validation = (Moments(part.features.shape[1], data.num_classes) for _ in range(2))
        fit.add(part.features[~is_held_out], part.labels[~is_held_out])
        validation.add(part.features[is_held_out], part.labels[is_held_out])
    if fit is None or validation is None:
        raise AssertionError("a dataset has a sample")
    check_held_out(fit.num_samples, validation.num_samples, data.task.validation)
    parts = ((part.features[is_held_out], part.labels[is_held_out]) for part, is_held_out in data.train_stream(spec))
    best, share = choose_ridge(fit, parts, l2s)
    return Candidate(spec, share, {"l2": best.l2}, (fit, validation))


def _test_scores(data: TaskData, spec: FeatureSpec, solution: Ridge) -> tuple[TestPart, Values]:
    """The test samples without their features, and their scores (N, K)."""
    keys: list[str] = []
    labels: list[Values] = []
    scores: list[Values] = []
    for part in data.test_stream(spec):
        keys += part.keys
        labels.append(part.labels)
        scores.append(solution.scores(part.features))
    test = TestPart(tuple(keys), np.concatenate(labels), np.empty((len(keys), 0), np.float32))
    return test, np.concatenate(scores)


class Moments:
    """Sums over samples: of x, of x x', of y, and of x y'. Parts may come in any number and size."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        self.num_samples = 0
        self._shift: Matrix | None = None
        self._gram = np.zeros((num_features, num_features))
        self._sums = np.zeros(num_features)
        self._counts = np.zeros(num_classes)
        self._cross = np.zeros((num_classes, num_features))

    def add(self, features_nD: Array, labels: NDArray[np.generic]) -> None:
        """Add a part: labels are (n,) class numbers, or (n, K) of 0 and 1."""
        if not len(features_nD):
            return
        if len(features_nD) != len(labels):
            raise ValueError(f"{len(features_nD)} features, {len(labels)} labels")
        if self._shift is None:
            self._shift = features_nD[:_BLOCK].mean(axis=0, dtype=np.float64)
        for start in range(0, len(features_nD), _BLOCK):
            rows = slice(start, start + _BLOCK)
            x: Matrix = features_nD[rows] - self._shift
            self._add_block(x, labels[rows])

    def _add_block(self, x: Matrix, labels: NDArray[np.generic]) -> None:
        block = torch.from_numpy(x)
        torch.from_numpy(self._gram).addmm_(block.T, block)
        self._sums += x.sum(axis=0)
        if labels.ndim == 1:
            label_rows = torch.as_tensor(labels).long()
            torch.from_numpy(self._cross).index_add_(0, label_rows, block)
            self._counts += np.bincount(label_rows.numpy(), minlength=len(self._counts))
        else:
            self._cross += labels.astype(np.float64).T @ x
            self._counts += labels.sum(axis=0, dtype=np.float64)
        self.num_samples += len(x)

    def merge(self, added: Moments) -> None:
        """Add the sums of another stream over the same features and classes."""
        if added._shift is None:
            return
        if self._shift is None:
            self._shift = added._shift
        move = added._shift - self._shift  # moves the added sums to this shift
        outer = np.outer(move, added._sums)
        self._gram += added._gram + outer + outer.T + added.num_samples * np.outer(move, move)
        self._sums += added._sums + added.num_samples * move
        self._cross += added._cross + np.outer(added._counts, move)
        self._counts += added._counts
        self.num_samples += added.num_samples

    def centred(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """Mean (D), centred X'X (D, D), centred X'T (D, K), mean of T (K), with T = 2 Y - 1."""
        if self._shift is None:
            raise InputError("ridge regression of no samples")
        mean = self._sums / self.num_samples
        gram = self._gram - np.outer(self._sums, mean)
        cross = 2.0 * (self._cross - np.outer(self._counts, mean)).T
        return self._shift + mean, gram, cross, 2.0 * self._counts / self.num_samples - 1.0


@dataclass(frozen=True)
class Ridge:
    """weights (D, K) for features as given, bias (K)."""

    l2: float
    weights: Matrix
    bias: Matrix

    def scores(self, features_MD: Array) -> Matrix:
        """(M, K) regression outputs; the largest is the prediction. They are not probabilities."""
        return features_MD @ self.weights + self.bias


def fit_ridge(moments: Moments, l2s: Sequence[float]) -> list[Ridge]:
    """One solution per l2 (> 0), in their order, from one eigendecomposition."""
    mean, gram, cross, target = moments.centred()
    std = np.sqrt(np.maximum(np.diag(gram), 0.0) / moments.num_samples) + _EPSILON
    values, vectors = np.linalg.eigh(gram / np.outer(std, std))
    rotated = vectors.T @ (cross / std[:, None])
    solutions = []
    for l2 in l2s:
        weights = vectors @ (rotated / (np.maximum(values, 0.0) + l2)[:, None]) / std[:, None]
        solutions.append(Ridge(l2, weights, target - mean @ weights))
    return solutions


def choose_ridge(moments: Moments, validation: Iterable[Part], l2s: Sequence[float]) -> tuple[Ridge, float]:
    """The solution with the best share on *validation*, and that share. Ties go to the larger l2.

    Raises InputError when there are no samples to choose on.
    """
    ridges = fit_ridge(moments, sorted(set(l2s), reverse=True))
    shares = ridge_shares(ridges, validation)
    best = int(np.argmax(shares))  # the first of equals, so the strongest
    return ridges[best], shares[best]


def ridge_shares(ridges: Sequence[Ridge], parts: Iterable[Part]) -> list[float]:
    """For each solution its top-1, or its mAP where labels are (n, K), over all samples of *parts*.

    Of single labels only hits are counted, so that one part's scores under one solution are in memory at a time. mAP
    needs all scores, since it orders the samples. Raises InputError when there are no samples.
    """
    hits, count = np.zeros(len(ridges)), 0
    truth: list[NDArray[np.generic]] = []
    scores: list[list[Matrix]] = [[] for _ in ridges]
    for features, labels in parts:
        count += len(labels)
        for index, ridge in enumerate(ridges):
            part_scores = ridge.scores(features)
            if labels.ndim == 1:
                hits[index] += (part_scores.argmax(axis=1) == labels).sum()
            else:
                scores[index].append(part_scores)
        truth += [labels] if labels.ndim > 1 else []
    if not count:
        raise InputError("ridge regression judged on no samples")
    if not truth:
        return [float(hit) / count for hit in hits]
    return [mean_average_precision(np.concatenate(parts), np.concatenate(truth)) for parts in scores]
