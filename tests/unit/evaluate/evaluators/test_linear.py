"""Logistic regression against scikit-learn and SciPy with tight tolerances, and the choice of its penalty."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from pipeline.evaluate.evaluators.linear import (
    Standardiser,
    fit_candidates,
    fit_logistic,
    label_probabilities,
    path_shares,
    probabilities,
)
from pipeline.evaluate.evaluators.logistic import TOLERANCE, fit_path, mean_loss
from pipeline.evaluate.metrics.classification import mean_average_precision
from pipeline.evaluate.recipe import SIMCLR_L2
from tests.support.blobs import blobs, label_sets

PATH = [10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-5]


def gradient(weights: NDArray, features: NDArray, labels: NDArray, l2: float) -> NDArray:
    """Of the objective, by its definition in float64."""
    x = np.hstack([features.astype(np.float64), np.ones((len(features), 1))])
    logits = x @ weights.T
    if labels.ndim == 1:
        errors = np.exp(log_softmax(logits, axis=1))
        errors[np.arange(len(x)), labels] -= 1
    else:
        errors = 1 / (1 + np.exp(-logits)) - labels
    penalised = weights.copy()
    penalised[:, -1] = 0
    return errors.T @ x / len(x) + l2 * penalised


@pytest.mark.parametrize("tolerance", [1e-4, TOLERANCE, 1e-9])
@pytest.mark.parametrize(("count", "width", "classes"), [(600, 12, 4), (40, 90, 3), (300, 20, 2)])
def test_every_fit_of_a_path_ends_where_the_gradient_is_small(
    count: int, width: int, classes: int, tolerance: float
) -> None:
    features, labels = blobs(count, width, classes, seed=1)
    features[:, 1] = features[:, 0]  # a direction without variance
    features[:, 2] = 0.5
    for fit in fit_path(features, labels, classes, PATH, max_iterations=1000, tolerance=tolerance):
        left = np.abs(gradient(fit.weights, features, labels, fit.l2)).max()
        rounding = 3e-7 if tolerance > 1e-6 else 0  # float32 passes end within it
        assert left <= tolerance * (1 + 1e-6) + rounding, fit.l2
        assert fit.gradient == pytest.approx(left, abs=1e-6 if tolerance > 1e-6 else 1e-12)
        assert np.abs(fit.weights[:, :-1].sum(axis=0)).max() < 1e-9


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_weights_equal_scikit_learns(l2: float) -> None:
    features, labels = blobs(500, 10, 4, seed=1)
    ours = fit_logistic(features, labels, 4, l2, max_iterations=1000, tolerance=1e-10).weights
    reference = LogisticRegression(C=1 / (500 * l2), tol=1e-11, max_iter=10_000).fit(
        features.astype(np.float64), labels
    )
    theirs = np.hstack([reference.coef_, reference.intercept_[:, None]])
    assert np.abs((ours - ours.mean(0)) - (theirs - theirs.mean(0))).max() < 1e-5


def test_the_objective_equals_scipys_minimum() -> None:
    features, labels = blobs(300, 8, 3, seed=1)
    x, rows = features.astype(np.float64), np.arange(300)

    def objective(flat: NDArray) -> tuple[float, NDArray]:
        weights = flat.reshape(3, 9)
        logits = x @ weights[:, :-1].T + weights[:, -1]
        loss = -log_softmax(logits, axis=1)[rows, labels].mean() + 0.01 / 2 * (weights[:, :-1] ** 2).sum()
        return loss, gradient(weights, features, labels, 0.01).ravel()

    found = minimize(objective, np.zeros(27), jac=True, method="BFGS", options={"gtol": 1e-10})
    ours = fit_logistic(features, labels, 3, 0.01, max_iterations=1000, tolerance=1e-9).weights
    assert objective(ours.ravel())[0] == pytest.approx(found.fun, abs=1e-13)
    assert mean_loss(ours, features, labels, 0.01) == pytest.approx(found.fun, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "width", "classes", "l2"),
    [(240, 8, 3, 1e-3), (240, 8, 3, 1.0), (60, 40, 4, 1e-2), (60, 40, 4, 1.0), (100, 6, 2, 1e-3), (100, 6, 2, 1e-2)],
)
def test_probabilities_equal_scikit_learns(count: int, width: int, classes: int, l2: float) -> None:
    features, labels = blobs(count, width, classes, seed=1)
    queries, _ = blobs(80, width, classes, seed=2)
    rough = probabilities(fit_logistic(features, labels, classes, l2, max_iterations=1000).weights, queries)
    exact = fit_logistic(features, labels, classes, l2, max_iterations=1000, tolerance=1e-9).weights
    ours = probabilities(exact, queries)
    # For two classes scikit-learn has one weight vector, ours two of opposite sign: half the sum of squares.
    strength = (2 if classes == 2 else 1) / (count * l2)
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    theirs = reference.fit(features.astype(np.float64), labels).predict_proba(queries.astype(np.float64))
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(rough - theirs).max() < 1e-2  # tolerance / l2: up to 1.5e-3, by the order in which a processor adds
    assert ours.sum(axis=1) == pytest.approx(np.ones(80), abs=1e-5)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_several_labels_are_a_regression_each(l2: float) -> None:
    features, labels = label_sets(400, 10, 5, seed=1)
    weights = fit_logistic(features, labels, 5, l2, max_iterations=1000, tolerance=1e-9).weights
    shares = label_probabilities(weights, features)
    for label in range(5):
        reference = LogisticRegression(C=1 / (400 * l2), tol=1e-11, max_iter=10_000)
        reference.fit(features.astype(np.float64), labels[:, label])
        assert weights[label] == pytest.approx(np.append(reference.coef_, reference.intercept_), abs=1e-5)
        assert shares[:, label] == pytest.approx(reference.predict_proba(features.astype(np.float64))[:, 1], abs=1e-5)
    assert np.abs(gradient(weights, features, labels, l2)).max() < 1e-9


def test_a_path_ends_where_single_fits_do() -> None:
    features, labels = blobs(400, 12, 4, seed=1)
    for fit in fit_path(features, labels, 4, PATH, max_iterations=1000, tolerance=1e-8):
        alone = fit_logistic(features, labels, 4, fit.l2, max_iterations=1000, tolerance=1e-8).weights
        assert np.abs(probabilities(fit.weights, features) - probabilities(alone, features)).max() < 1e-4, fit.l2


def test_the_start_does_not_change_where_it_ends() -> None:
    features, labels = blobs(120, 8, 3, seed=1)
    cold = fit_logistic(features, labels, 3, 0.01, max_iterations=1000).weights
    start = np.random.default_rng(0).normal(size=(3, 9))
    far = fit_logistic(features, labels, 3, 0.01, max_iterations=1000, start=start).weights
    assert np.abs(probabilities(cold, features) - probabilities(far, features)).max() < 1e-3


def test_features_far_from_zero_and_of_other_scales() -> None:
    features, labels = blobs(300, 8, 3, seed=1)
    moved = (features * np.logspace(-1, 1, 8) + 20).astype(np.float32)
    weights = fit_logistic(moved, labels, 3, 0.01, max_iterations=1000, tolerance=1e-7).weights
    assert np.abs(gradient(weights, moved, labels, 0.01)).max() < 1e-6


def test_a_class_without_samples_gets_no_probability() -> None:
    features, labels = blobs(200, 6, 3, seed=1)
    weights = fit_logistic(features, labels, 4, 0.01, max_iterations=200).weights
    assert probabilities(weights, features)[:, 3].max() < 1e-3


def test_without_a_penalty_separable_classes_end_at_the_limit_of_steps() -> None:
    features, labels = blobs(60, 40, 3, seed=1, spread=0.1)
    (fit,) = fit_path(features, labels, 3, [0.0], max_iterations=30)
    assert np.isfinite(fit.weights).all()
    assert fit.iterations <= 30
    (early,) = fit_path(features, labels, 3, [0.0], max_iterations=3)
    assert (early.iterations, early.converged) == (3, False)
    assert (probabilities(fit.weights, features).argmax(1) == labels).all()


def test_the_bias_is_not_penalised() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    weights = fit_logistic(np.zeros((100, 3), np.float32), labels, 2, 10.0, max_iterations=500).weights
    assert probabilities(weights, np.zeros((1, 3), np.float32))[0] == pytest.approx([0.9, 0.1], abs=1e-3)


def test_probabilities_do_not_overflow() -> None:
    weights = np.array([[1e4, 0.0], [-1e4, 0.0]])
    assert probabilities(weights, np.array([[1.0]], np.float32)).tolist() == [[1.0, 0.0]]
    assert label_probabilities(weights, np.array([[1.0]], np.float32)).tolist() == [[1.0, 0.0]]


def test_candidates_are_fitted_from_strong_to_weak_and_shared_as_each_alone() -> None:
    features, labels = blobs(60, 30, 3, seed=1, spread=3.0)
    checked = blobs(90, 30, 3, seed=2, spread=3.0)
    candidates = [1e-5, 10.0, 0.1, 1e-3, 0.1]
    assert all(fit.converged for fit in fit_candidates(features, labels, 3, candidates, 500))
    # A gradient of g leaves weights up to g / l2 apart: 1e-5 / 1e-5 at the protocol's tolerance, where a processor's
    # order of adding decides predictions. At 1e-9 weights agree to 1e-4 of the largest, and the two best classes of a
    # sample are 3e-3 apart: the same shares on every processor.
    fits = fit_candidates(features, labels, 3, candidates, 500, tolerance=1e-9)
    assert [fit.l2 for fit in fits] == [10.0, 0.1, 1e-3, 1e-5]
    assert all(fit.converged and fit.gradient <= 1e-9 for fit in fits)
    alone = [fit_logistic(features, labels, 3, fit.l2, max_iterations=1000, tolerance=1e-9).weights for fit in fits]
    shares = [(probabilities(weights, checked[0]).argmax(1) == checked[1]).mean() for weights in alone]
    assert len(set(shares)) > 1
    assert path_shares(fits, *checked) == pytest.approx(np.array(shares), abs=1e-12)
    with pytest.raises(ValueError, match="no l2 to choose from"):
        fit_candidates(features, labels, 3, [], 200)


def test_several_labels_are_shared_by_their_mean_average_precision() -> None:
    train, held = label_sets(80, 30, 4, seed=1), label_sets(300, 30, 4, seed=2)
    fits = list(fit_path(*train, 4, PATH, max_iterations=300))
    shares = path_shares(fits, *held)
    assert len(set(shares)) == len(PATH)
    scores = label_probabilities(fits[2].weights, held[0])
    assert shares[2] == pytest.approx(mean_average_precision(scores, held[1]), abs=1e-3)


def test_shares_of_a_path_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(100, 6, 3, seed=1)
    fits = list(fit_path(features, labels, 3, PATH, max_iterations=300))
    whole = path_shares(fits, features, labels)
    monkeypatch.setattr("pipeline.evaluate.evaluators.linear._CHUNK", 7)
    assert path_shares(fits, features, labels).tolist() == whole.tolist()
    right = [(probabilities(fit.weights, features).argmax(1) == labels).mean() for fit in fits]
    assert whole.tolist() == right


def test_the_penalties_of_the_protocol() -> None:
    assert len(SIMCLR_L2) == 45
    assert (SIMCLR_L2[0], SIMCLR_L2[-1]) == pytest.approx((1e-6, 1e5))
    assert np.diff(np.log(SIMCLR_L2)) == pytest.approx(np.full(44, np.log(1e11) / 44))


def test_standardiser() -> None:
    features = np.random.default_rng(0).normal(5, 3, (50, 4)).astype(np.float32)
    features[:, 2] = 7.0
    scaled = Standardiser(features)(features)
    assert scaled[:, 2].tolist() == [0.0] * 50
    others = scaled[:, [0, 1, 3]]
    assert others.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-5)
    assert others.std(axis=0) == pytest.approx(np.ones(3), abs=1e-5)
