"""Linear probe: logistic regression on standardised features, its penalty chosen on the validation part (SimCLR,
arXiv 2002.05709, App. B). The solver is in ``logistic.py``.

Shapes: N samples, M queries, D features, K classes. Labels are (N,) class numbers, or (N, K) of 0 and 1 where samples
have several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.logistic import TOLERANCE, Fit, fit_path
from pipeline.evaluate.evaluators.probe import Candidate, Values, layer_specs, run_probe, settings_of
from pipeline.evaluate.features.storage import FeatureSpec
from pipeline.evaluate.metrics.classification import mean_average_precision
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import LinearSettings
from pipeline.evaluate.splits import Choice, TestPart, TrainPart
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.records.score import Metric

Array = NDArray[np.float32]
Labels = NDArray[np.generic]
Weights = NDArray[np.float64]
_CHUNK = 8192  # samples whose scores under all penalties are in memory at once


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Logistic regression; l2 chosen on the validation part, refitted on all training samples.

    The oracle chooses among the recorded result and every l2 as fitted on the fit part, of the chosen layer: the fits
    of the choice are used again, and no l2 is fitted a second time. ``chosen`` also records whether the refit
    ``converged``, and which l2 of the path did not, if any.
    """
    data = open_task(workspace, planned)
    return run_probe(data, layer_specs(planned), _LinearSolver(data, settings_of(planned)))


class _LinearSolver:
    """See ProbeSolver."""

    def __init__(self, data: TaskData, settings: LinearSettings) -> None:
        self._data, self._settings = data, settings
        self._probabilities = label_probabilities if data.is_many else probabilities

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        fit, validation, settings = choice.fit, choice.validation, self._settings
        scale = Standardiser(fit.features)
        fits = fit_candidates(
            scale(fit.features), fit.labels, self._data.num_classes, settings.l2, settings.max_iterations
        )
        shares = path_shares(fits, scale(validation.features), validation.labels)
        best = fits[int(np.argmax(shares))]  # of equals the strongest penalty
        share = self._data.share(validation.labels, self._probabilities(best.weights, scale(validation.features)))
        unconverged = [fit.l2 for fit in fits if not fit.converged]
        chosen = {"l2": best.l2} | ({"unconverged_l2": unconverged} if unconverged else {})
        return Candidate(spec, share, chosen, (best, fits, scale))

    def test(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[Values, Metric]:
        start, fits, fit_scale = best.refit_state
        scale = Standardiser(train.features)
        refit = fit_logistic(
            scale(train.features),
            train.labels,
            self._data.num_classes,
            best.chosen["l2"],
            max_iterations=self._settings.max_iterations,
            start=start.weights,
        )
        best.chosen["converged"] = refit.converged
        result = self._probabilities(refit.weights, scale(test.features))
        features = fit_scale(test.features)
        shares = [self._data.share(test.labels, result), *path_shares(fits, features, test.labels)]

        def scores_of(index: int) -> Values:
            return self._probabilities(fits[index - 1].weights, features) if index else result

        return result, self._data.oracle(test, shares, scores_of)


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


def fit_candidates(
    features_ND: Array,
    labels: Labels,
    num_classes: int,
    candidates: Sequence[float],
    max_iterations: int,
    tolerance: float = TOLERANCE,
) -> list[Fit]:
    """One fit for each l2, from the strongest penalty to the weakest, each starting from the one before."""
    if not candidates:
        raise ValueError("no l2 to choose from")
    ordered = sorted(set(candidates), reverse=True)
    path = fit_path(features_ND, labels, num_classes, ordered, max_iterations=max_iterations, tolerance=tolerance)
    return list(path)


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

    See :mod:`~pipeline.evaluate.evaluators.logistic` for the convention, the method and the tolerance.
    """
    path = fit_path(
        features_ND, labels, num_classes, [l2], max_iterations=max_iterations, tolerance=tolerance, start=start
    )
    return next(path)


def path_shares(fits: Sequence[Fit], features_MD: Array, labels: Labels) -> NDArray[np.float64]:
    """For each fit its top-1, or its mAP where labels are (M, K). All fits share their passes over the features."""
    kernels = np.concatenate([fit.weights[:, :-1] for fit in fits]).astype(np.float32)
    biases = np.concatenate([fit.weights[:, -1] for fit in fits]).astype(np.float32)
    chunks = []
    for start in range(0, len(features_MD), _CHUNK):
        scores = features_MD[start : start + _CHUNK] @ kernels.T + biases
        scores = scores.reshape(len(scores), len(fits), -1)
        chunks.append(scores.argmax(axis=2) if labels.ndim == 1 else scores)
    joined = np.concatenate(chunks)
    if labels.ndim == 1:
        shares: NDArray[np.float64] = (joined == labels[:, None]).mean(axis=0)
        return shares
    return np.array([mean_average_precision(joined[:, index], labels) for index in range(len(fits))])


def probabilities(weights: Weights, features_ND: Array) -> Array:
    """(N, K) class probabilities that sum to one."""
    logits = features_ND.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def label_probabilities(weights: Weights, features_ND: Array) -> Array:
    """(N, K) probabilities of each label on its own, for weights that were fitted to several labels."""
    logits = features_ND.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
    shares: Array = (0.5 + 0.5 * np.tanh(0.5 * logits)).astype(np.float32)
    return shares
