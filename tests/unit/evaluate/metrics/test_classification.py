"""Metrics of one class per sample and calibration against scikit-learn and torchmetrics; intervals against known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from torchmetrics.classification import MulticlassCalibrationError

from pipeline.evaluate.metrics import (
    Outcomes,
    confusion,
    ece,
    mean_per_class,
    nll,
    of_probabilities,
    of_scores,
    oracle,
    top1,
    top5,
    wilson,
)
from pipeline.evaluate.metrics.classification import is_oracle
from pipeline.evaluate.metrics.intervals import bootstrap_mean, percentiles, resampled, resampled_cells
from pipeline.records.score import Metric

CLASSES = 8


def predicted(count: int, seed: int, sharp: float = 1.5) -> tuple[NDArray, NDArray]:
    """Labels of unequal classes, and probabilities that often favour them."""
    draw = np.random.default_rng(seed)
    labels = np.minimum(draw.geometric(0.3, count) - 1, CLASSES - 1)
    logits = draw.normal(size=(count, CLASSES)) * sharp
    logits[np.arange(count), labels] += sharp
    shares = np.exp(logits)
    return labels, (shares / shares.sum(1, keepdims=True)).astype(np.float32)


def outcomes_of(count: int, seed: int, sharp: float = 1.5) -> Outcomes:
    labels, shares = predicted(count, seed, sharp)
    return of_probabilities(tuple(map(str, range(count))), labels, shares)


# Newcombe, Statistics in Medicine 17 (1998), Table I, method 3: the score interval, to four digits.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize("trials", [1, 10, 1000])
def test_wilson_interval_equals_scipys(trials: int) -> None:
    for successes in {0, trials // 3, trials // 2, trials}:
        expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_top1() -> None:
    labels = np.array([0, 1, 2, 1] * 10)
    predictions = np.where(np.arange(40) < 30, labels, 5)
    found = top1(Outcomes(tuple("abcd" * 10), labels, predictions, np.ones(40, np.float32)))
    assert (found.name, found.value) == ("top1", 0.75)
    assert (found.low, found.high) == wilson(30, 40)
    assert found.low < 0.75 < found.high


@pytest.mark.parametrize("sharp", [0.3, 1.5, 6.0])
def test_values_equal_scikit_learns(sharp: float) -> None:
    labels, shares = predicted(3000, 1, sharp)
    outcomes = outcomes_of(3000, 1, sharp)
    every = np.arange(CLASSES)
    assert top1(outcomes).value == pytest.approx(top_k_accuracy_score(labels, shares, k=1, labels=every))
    assert top5(outcomes).value == pytest.approx(top_k_accuracy_score(labels, shares, k=5, labels=every))
    assert mean_per_class(outcomes).value == pytest.approx(balanced_accuracy_score(labels, shares.argmax(1)))
    assert nll(outcomes).value == pytest.approx(log_loss(labels, shares, labels=every), rel=1e-5)
    assert (confusion(outcomes, CLASSES) == confusion_matrix(labels, shares.argmax(1), labels=every)).all()


@pytest.mark.parametrize("sharp", [0.3, 1.5, 6.0])
def test_calibration_error_equals_torchmetrics(sharp: float) -> None:
    labels, shares = predicted(3000, 1, sharp)
    reference = MulticlassCalibrationError(num_classes=CLASSES, n_bins=15, norm="l1")
    expected = reference(torch.from_numpy(shares).double(), torch.from_numpy(labels))
    found = ece(outcomes_of(3000, 1, sharp))
    assert found.value == pytest.approx(float(expected), abs=1e-6)
    assert found.low <= found.value <= found.high


def test_calibration_error_by_hand() -> None:
    confidence = np.array([1.0, 1.0, 0.9, 0.9, 0.5, 0.0], np.float32)
    right = np.array([1, 0, 1, 1, 0, 1])
    outcomes = Outcomes(tuple("abcdef"), right, np.ones(6, np.int64), confidence)
    # bins: 1.0 with 1.0 of [14/15, 1]; 0.9 of [13/15, 14/15); 0.5; 0.0
    assert ece(outcomes).value == pytest.approx((abs(2 - 1) + abs(1.8 - 2) + 0.5 + 1) / 6, abs=1e-6)


def test_a_tie_has_one_rank_and_it_agrees_with_the_prediction() -> None:
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    ranks = [of_scores(tuple("abc"), np.full(3, label), scores).ranks.tolist() for label in range(3)]
    assert ranks == [[0, 1, 0], [1, 2, 1], [2, 0, 2]]


def test_scores_are_no_probabilities() -> None:
    labels, shares = predicted(50, 1)
    outcomes = of_scores(tuple(map(str, range(50))), labels, 10 * shares - 5)
    assert top1(outcomes) == top1(outcomes_of(50, 1))
    assert np.isnan(outcomes.probabilities).all()
    for metric in (nll, ece):
        with pytest.raises(ValueError, match="no probabilities"):
            metric(outcomes)


def test_a_class_without_a_vote_has_a_finite_likelihood() -> None:
    outcomes = of_probabilities(("a",), np.array([1]), np.array([[1.0, 0.0]], np.float32))
    assert outcomes.nll == pytest.approx([-np.log(np.finfo(np.float32).eps)])


def test_weights_are_multinomial() -> None:
    weights = np.concatenate(list(resampled(50, seed=1, draws=4000)))
    assert weights.shape == (4000, 50)
    assert (weights.sum(1) == 50).all()
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=0.1)
    assert weights.var() == pytest.approx(1 - 1 / 50, abs=0.02)
    counts = np.array([10, 0, 30, 60])
    cells = resampled_cells(counts, seed=1, draws=4000)
    assert (cells.sum(1) == 100).all()
    assert cells.mean(0) == pytest.approx(counts, abs=0.5)
    assert cells.std(0) == pytest.approx(np.sqrt(counts * (1 - counts / 100)), abs=0.3)


def test_weights_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resampled(20, seed=1, draws=30)))
    monkeypatch.setattr("pipeline.evaluate.metrics.intervals._CHUNK_WEIGHTS", 70)
    parts = list(resampled(20, seed=1, draws=30))
    assert len(parts) == 10
    assert (np.concatenate(parts) == whole).all()
    assert not (np.concatenate(list(resampled(20, seed=2, draws=30))) == whole).all()


def test_bootstrap_interval_of_a_mean_is_the_normal_one_and_the_seed_fixes_it() -> None:
    values = np.random.default_rng(0).exponential(3.0, 2000)
    low, high = percentiles(bootstrap_mean(values, seed=1))
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert percentiles(bootstrap_mean(values, seed=1)) == (low, high)
    assert percentiles(bootstrap_mean(values, seed=2)) != (low, high)


def test_mean_per_class_interval_covers_as_often_as_it_says() -> None:
    truth = np.array([0.9, 0.5, 0.7])
    covered = 0
    for trial in range(200):
        draw = np.random.default_rng(trial)
        labels = draw.choice(3, size=300, p=[0.6, 0.3, 0.1])
        predictions = np.where(draw.random(300) < truth[labels], labels, (labels + 1) % 3)
        found = mean_per_class(Outcomes(("",) * 300, labels, predictions, np.ones(300, np.float32)), trial, draws=400)
        covered += found.low <= truth.mean() <= found.high
    assert 0.89 <= covered / 200 <= 0.985


def test_the_oracle_is_marked() -> None:
    candidates = [Metric(name="top1", value=value, low=value - 0.1, high=value + 0.1) for value in (0.5, 0.8, 0.7)]
    found = oracle(candidates)
    assert (found.name, found.value, found.low) == ("oracle_top1", 0.8, 0.8 - 0.1)
    assert is_oracle(found)
    assert not is_oracle(candidates[0])
    assert oracle(candidates, smaller_is_better=True).value == 0.5
    with pytest.raises(ValueError, match="one metric"):
        oracle([candidates[0], found])
    with pytest.raises(ValueError, match="one metric"):
        oracle([])
