"""What is known of each test sample after an evaluation.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# Probabilities below it count as it in a log-likelihood, so that one vote of nobody does not make it infinite.
# scikit-learn's log_loss clips float32 input at the same number.
SMALLEST = float(np.finfo(np.float32).eps)
NO_LABEL = -1  # stands in ``labels`` where samples have several


@dataclass(frozen=True)
class Outcomes:
    """Per test sample (N,): its key, true label, predicted label, and the probability given to the prediction.

    Where scores are not probabilities (regression), ``probabilities`` are NaN. ``ranks``: how many classes were put
    before the true one, 0 when it is the prediction. Where samples have several labels, ``labels`` are NO_LABEL, the
    prediction is the label with the largest score, and ``targets`` (N, K) bool and ``scores`` (N, K) hold the rest.
    None: not known.
    """

    keys: tuple[str, ...]
    labels: Ints
    predictions: Ints
    probabilities: Floats
    ranks: Ints | None = None
    true_probabilities: Floats | None = None
    nll: Floats | None = None
    targets: NDArray[np.bool_] | None = None
    scores: Floats | None = None


def of_probabilities(keys: tuple[str, ...], labels_N: Ints, probabilities_NK: NDArray[Any]) -> Outcomes:
    """From class probabilities, each row summing to one."""
    rows = np.arange(len(labels_N))
    predictions = probabilities_NK.argmax(axis=1).astype(np.int64)
    true = probabilities_NK[rows, labels_N].astype(np.float32)
    return Outcomes(
        keys,
        labels_N,
        predictions,
        probabilities_NK[rows, predictions].astype(np.float32),
        _ranks(probabilities_NK, labels_N),
        true,
        -np.log(np.clip(true, SMALLEST, 1.0)),
    )


def of_scores(keys: tuple[str, ...], labels_N: Ints, scores_NK: NDArray[Any]) -> Outcomes:
    """From scores of which only the order means something: no probabilities, no NLL."""
    unknown = np.full(len(labels_N), np.nan, np.float32)
    predictions = scores_NK.argmax(axis=1).astype(np.int64)
    return Outcomes(keys, labels_N, predictions, unknown, _ranks(scores_NK, labels_N))


def of_label_scores(
    keys: tuple[str, ...], targets_NK: NDArray[Any], scores_NK: NDArray[Any], *, calibrated: bool
) -> Outcomes:
    """For samples with several labels. *calibrated*: the scores are probabilities of each label on its own.

    The NLL of a sample is then the sum over labels of the binary cross-entropies.
    """
    scores, targets = scores_NK.astype(np.float32), targets_NK.astype(bool)
    predictions = scores.argmax(axis=1).astype(np.int64)
    unknown = np.full(len(keys), np.nan, np.float32)
    given = np.clip(np.where(targets, scores, 1 - scores), SMALLEST, 1.0)
    return Outcomes(
        keys,
        np.full(len(keys), NO_LABEL, np.int64),
        predictions,
        scores[np.arange(len(keys)), predictions] if calibrated else unknown,
        nll=-np.log(given).sum(axis=1) if calibrated else None,
        targets=targets,
        scores=scores,
    )


def _ranks(scores_NK: NDArray[Any], labels_N: Ints) -> Ints:
    """Classes with a larger score, and of equal ones those that argmax would take first."""
    true = scores_NK[np.arange(len(labels_N)), labels_N][:, None]
    before = np.arange(scores_NK.shape[1]) < labels_N[:, None]
    ranks: Ints = ((scores_NK > true) | ((scores_NK == true) & before)).sum(axis=1)
    return ranks
