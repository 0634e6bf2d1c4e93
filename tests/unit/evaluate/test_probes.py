"""The solvers against independent references: scikit-learn, brute force, and a direct solve in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.base.errors import InputError
from pipeline.evaluate.probe.fewshot import choose_shots, fit_ridge
from pipeline.evaluate.probe.knn import knn_probabilities
from pipeline.evaluate.probe.linear import Standardiser, choose_l2, fit_logistic, probabilities


def blobs(count: int, width: int, classes: int, seed: int, spread: float = 1.5) -> tuple[NDArray, NDArray]:
    """Overlapping Gaussian classes around centres that depend on nothing but the shape."""
    centres = np.random.default_rng(0).normal(size=(classes, width))
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(count) % classes)
    return (centres[labels] + spread * draw.normal(size=(count, width))).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize(
    ("count", "width", "classes", "l2"),
    [(240, 8, 3, 1e-3), (240, 8, 3, 1.0), (60, 40, 4, 1e-2), (60, 40, 4, 1.0), (100, 6, 2, 1e-3), (100, 6, 2, 1e-2)],
)
def test_logistic_regression_equals_scikit_learns(count: int, width: int, classes: int, l2: float) -> None:
    features, labels = blobs(count, width, classes, seed=1)
    queries, _ = blobs(80, width, classes, seed=2)
    ours = probabilities(fit_logistic(features, labels, classes, l2, max_iterations=1000), queries)
    # For two classes scikit-learn has one weight vector, ours two of opposite sign: half the sum of squares.
    strength = (2 if classes == 2 else 1) / (count * l2)
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
    theirs = reference.fit(features.astype(np.float64), labels).predict_proba(queries.astype(np.float64))
    assert np.abs(ours - theirs).max() < 1e-3
    assert ours.sum(axis=1) == pytest.approx(np.ones(80), abs=1e-5)


def test_the_start_does_not_change_where_it_ends() -> None:
    features, labels = blobs(120, 8, 3, seed=1)
    cold = fit_logistic(features, labels, 3, 0.01, max_iterations=1000)
    far = fit_logistic(features, labels, 3, 0.01, max_iterations=1000, start=np.full((3, 9), 2.0))
    assert np.abs(probabilities(cold, features) - probabilities(far, features)).max() < 1e-3


def test_the_bias_is_not_penalised() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    weights = fit_logistic(np.zeros((100, 3), np.float32), labels, 2, 10.0, max_iterations=500)
    assert probabilities(weights, np.zeros((1, 3), np.float32))[0] == pytest.approx([0.9, 0.1], abs=1e-3)


def test_probabilities_do_not_overflow() -> None:
    weights = np.array([[1e4, 0.0], [-1e4, 0.0]])
    assert probabilities(weights, np.array([[1.0]], np.float32)).tolist() == [[1.0, 0.0]]


def test_l2_is_the_one_with_the_best_validation_share_and_ties_go_to_the_larger() -> None:
    features, labels = blobs(60, 30, 3, seed=1, spread=3.0)
    checked = blobs(90, 30, 3, seed=2, spread=3.0)
    candidates = [1e-5, 10.0, 0.1, 1e-3]
    found, _ = choose_l2((features, labels), checked, 3, candidates, 500)
    shares = {}
    for l2 in candidates:
        weights = fit_logistic(features, labels, 3, l2, max_iterations=1000)
        shares[l2] = (probabilities(weights, checked[0]).argmax(1) == checked[1]).mean()
    assert len(set(shares.values())) > 1
    assert found == max(l2 for l2, share in shares.items() if share == max(shares.values()))
    easy = blobs(60, 5, 2, seed=1, spread=0.01)
    assert choose_l2(easy, easy, 2, [1e-4, 1e-2, 1e-3], 200)[0] == 1e-2


def test_standardiser() -> None:
    features = np.random.default_rng(0).normal(5, 3, (50, 4)).astype(np.float32)
    features[:, 2] = 7.0
    scaled = Standardiser(features)(features)
    assert scaled[:, 2].tolist() == [0.0] * 50
    others = scaled[:, [0, 1, 3]]
    assert others.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-5)
    assert others.std(axis=0) == pytest.approx(np.ones(3), abs=1e-5)


def brute_force_knn(
    train: NDArray, labels: NDArray, queries: NDArray, classes: int, k: int, temperature: float
) -> NDArray:
    """Weighted k-NN by its definition, one query at a time, in float64."""
    train, queries = train.astype(np.float64), queries.astype(np.float64)
    found = np.zeros((len(queries), classes))
    for row, query in enumerate(queries):
        cosine = train @ query / (np.linalg.norm(train, axis=1) * np.linalg.norm(query))
        for near in np.argsort(-cosine)[:k]:
            found[row, labels[near]] += np.exp(cosine[near] / temperature)
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_equals_brute_force(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.probe.knn._CHUNK", 16)  # several chunks, the last one short
    train, labels = blobs(90, 12, 4, seed=1)
    queries, _ = blobs(50, 12, 4, seed=2)
    found = knn_probabilities(train, labels, queries, 4, [1, 5, 20, 1000], temperature)
    assert sorted(found) == [1, 5, 20, 1000]
    for k, votes in found.items():
        assert votes.shape == (50, 4)
        expected = brute_force_knn(train, labels, queries, 4, k, temperature)
        assert np.abs(votes - expected).max() < 1e-4


def test_knn_at_a_tiny_temperature_is_the_nearest_neighbour() -> None:
    train, labels = blobs(90, 12, 4, seed=1)
    votes = knn_probabilities(train, labels, train, 4, [20], 1e-4)[20]
    assert np.isfinite(votes).all()
    assert (votes.argmax(1) == labels).all()


def direct_ridge(train: NDArray, labels: NDArray, queries: NDArray, classes: int, l2: float) -> NDArray:
    """The few-shot protocol by one linear solve in float64 (fewshot_lsr.py)."""
    x, q = train.astype(np.float64), queries.astype(np.float64)
    mean, std = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).mean(0)) + 1e-5
    x, q = (np.hstack([(part - mean) / std, np.full((len(part), 1), 100.0)]) for part in (x, q))
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    return q @ np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)


@pytest.mark.parametrize(
    ("count", "width"), [(120, 20), (21, 20), (20, 20), (12, 50)], ids=["N>D", "N=D+1", "N=D", "N<D"]
)
@pytest.mark.parametrize("l2", [2.0**10, 1.0])
def test_ridge_equals_a_direct_solve(count: int, width: int, l2: float) -> None:
    features, labels = blobs(count, width, 4, seed=1)
    queries, _ = blobs(30, width, 4, seed=2)
    found = fit_ridge(features, labels, 4, l2).scores(queries)
    expected = direct_ridge(features, labels, queries, 4, l2)
    assert np.abs(found - expected).max() < 1e-8 * max(1.0, np.abs(expected).max())


def test_shots_are_per_class_and_nested_within_a_seed() -> None:
    _, labels = blobs(400, 2, 4, seed=1)
    drawn = {shots: choose_shots(labels, 4, shots, seed=7) for shots in (1, 5, 10, 25)}
    for shots, rows in drawn.items():
        assert np.bincount(labels[rows]).tolist() == [shots] * 4
        assert len(set(rows.tolist())) == 4 * shots
    for fewer, more in ((1, 5), (5, 10), (10, 25)):
        assert set(drawn[fewer].tolist()) < set(drawn[more].tolist())
    assert drawn[10].tolist() == choose_shots(labels, 4, 10, seed=7).tolist()
    assert set(drawn[10].tolist()) != set(choose_shots(labels, 4, 10, seed=8).tolist())


def test_a_class_with_too_few_samples_is_named() -> None:
    labels = np.array([0] * 10 + [1] * 4 + [2] * 10)
    assert len(choose_shots(labels, 3, 4, seed=0)) == 12
    with pytest.raises(InputError, match="class 1 has 4 training samples, 5-shot needs 5"):
        choose_shots(labels, 3, 5, seed=0)
    with pytest.raises(InputError, match="class 3 has 0"):
        choose_shots(labels, 4, 1, seed=0)
