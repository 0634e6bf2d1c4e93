"""Few-shot: closed-form ridge regression to +-1 targets (big_vision evaluators/fewshot_lsr.py, ViT section 4.1).

Shapes: N samples (shots x classes), D features, K classes, M queries. All sums are in float64: the solutions equal a
direct solve to 1e-8 of the largest score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.seeds import generator
from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import layer_specs, settings_of
from pipeline.evaluate.metrics.classification import headline
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import FewshotSettings
from pipeline.evaluate.task_data import open_task
from pipeline.records.score import L2_INFIX, ORACLE_PREFIX

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
BIAS = 100.0  # the constant column that stands for a bias, hardly penalised (fewshot_lsr.py: BIAS_CONSTANT)
_EPSILON = 1e-5  # added to the standard deviation (fewshot_lsr.py)


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Ridge regression on a few samples per class, drawn by the seed. Chooses nothing.

    The results of another l2 on the test samples are recorded as ``oracle_top1_l2_<l2>``: to report one of them as the
    result would be to choose on test data.
    """
    settings: FewshotSettings = settings_of(planned)
    data = open_task(workspace, planned)
    data.require_one_label("fewshot")
    (spec,) = layer_specs(planned)
    data.prepare([spec])
    train, test = data.train(spec), data.test(spec)
    rows = choose_shots(train.labels, data.num_classes, settings.shots, planned.key.seed)
    system = FewshotSystem(train.features[rows], train.labels[rows], data.num_classes)
    by_l2 = system.scores_of_all(test.features, [settings.l2, *settings.other_l2])
    outcomes = {l2: data.outcomes(test.keys, test.labels, scores, calibrated=False) for l2, scores in by_l2.items()}
    oracles = tuple(
        headline(outcomes[l2]).model_copy(update={"name": f"{ORACLE_PREFIX}top1{L2_INFIX}{l2:g}"})
        for l2 in dict.fromkeys(settings.other_l2)
    )
    return EvalOutput(outcomes[settings.l2], data.num_classes, metrics=oracles)


def choose_shots(labels_N: NDArray[np.int64], num_classes: int, shots: int, seed: int) -> NDArray[np.int64]:
    """Rows of *shots* samples per class. For one seed fewer shots are a part of more.

    Raises InputError for a class with too few samples.
    """
    rows = []
    for label in range(num_classes):
        of_class = np.flatnonzero(labels_N == label)
        if len(of_class) < shots:
            raise InputError(f"class {label} has {len(of_class)} training samples, {shots}-shot needs {shots}")
        rows.append(generator(seed, "fewshot", label).permutation(of_class)[:shots])
    return np.concatenate(rows)


class FewshotSystem:
    """The few-shot samples, decomposed once: every l2 is then a division.

    The eigendecomposition is of X'X (D+1 wide) when N is at least that, else of XX' (N wide); both give the same
    weights.
    """

    def __init__(self, features_ND: Array, labels_N: NDArray[np.int64], num_classes: int) -> None:
        x64 = features_ND.astype(np.float64)
        self._mean, self._std = x64.mean(axis=0), x64.std(axis=0) + _EPSILON
        x = self._standardised(x64)
        targets = 2.0 * np.eye(num_classes)[labels_N] - 1.0
        is_wide = len(x) < x.shape[1]
        self._values, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
        self._left = x.T @ vectors if is_wide else vectors
        self._right = vectors.T @ (targets if is_wide else x.T @ targets)

    def weights(self, l2: float) -> Matrix:
        """(D+1, K): argmin of |X W - T|^2 + l2 |W|^2; the last row belongs to the constant column. l2 > 0."""
        return self._left @ (self._right / (self._values + l2)[:, None])

    def scores(self, features_MD: Array, l2: float) -> Matrix:
        """(M, K) regression outputs; the largest is the prediction. They are not probabilities."""
        return self._standardised(features_MD) @ self.weights(l2)

    def scores_of_all(self, features_MD: Array, l2s: Sequence[float]) -> dict[float, Matrix]:
        """The same for several l2, with the queries standardised once."""
        x = self._standardised(features_MD)
        return {l2: x @ self.weights(l2) for l2 in l2s}

    def _standardised(self, features: NDArray[np.floating]) -> Matrix:
        return np.concatenate([(features - self._mean) / self._std, np.full((len(features), 1), BIAS)], axis=1)
