"""Weighted k-NN against its definition; equal similarities have one order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluate.evaluators.knn import knn_probabilities, nearest
from tests.support.blobs import blobs, label_sets


def brute_force_knn(
    train: NDArray, labels: NDArray, queries: NDArray, classes: int, k: int, temperature: float
) -> NDArray:
    """Weighted k-NN by its definition, one query at a time, in float64."""
    train, queries = train.astype(np.float64), queries.astype(np.float64)
    sets = labels if labels.ndim == 2 else np.eye(classes)[labels]
    found = np.zeros((len(queries), classes))
    for row, query in enumerate(queries):
        cosine = train @ query / (np.linalg.norm(train, axis=1) * np.linalg.norm(query))
        near = np.argsort(-cosine)[:k]
        weights = np.exp(cosine[near] / temperature)
        found[row] = weights @ sets[near] / weights.sum()
    return found


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_knn_equals_brute_force(temperature: float, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.evaluators.knn._MAX_QUERIES", 16)  # several chunks, the last one short
    monkeypatch.setattr("pipeline.evaluate.evaluators.knn._VOTE_FLOATS", 100)
    make = label_sets if several else blobs
    train, labels = make(700, 12, 4, seed=1)
    queries, _ = make(50, 12, 4, seed=2)
    found = knn_probabilities(train, labels, queries, 4, [20, 1, 5, 1000], temperature)
    assert sorted(found) == [1, 5, 20, 1000]
    for k, votes in found.items():
        assert votes.shape == (50, 4)
        expected = brute_force_knn(train, labels, queries, 4, k, temperature)
        assert np.abs(votes - expected).max() < 1e-4


@pytest.mark.parametrize(("count", "k"), [(1000, 1), (1000, 7), (999, 10), (1009, 60), (64, 4), (65, 64), (30, 50)])
def test_the_nearest_are_found_in_order(count: int, k: int) -> None:
    train, _ = blobs(count, 8, 3, seed=1)
    queries, _ = blobs(40, 8, 3, seed=2)
    ((cosines, index),) = nearest(train, queries, k)
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries.astype(float), train.astype(float))]
    every = unit[0] @ unit[1].T
    expected = np.argsort(-every, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(every, expected, axis=1)
    assert cosines == pytest.approx(best, abs=1e-6)
    # Cosines in float32 are off by less than 1e-6, by the processor's order of adding: neighbours that are closer than
    # twice that (1.3e-6 occurs) may change places, no others.
    assert np.abs(np.take_along_axis(every, index, axis=1) - best).max() < 2e-6
    assert all(len(set(row)) == len(row) for row in index.tolist())
    assert (index != expected).sum() <= 2


@pytest.mark.parametrize("count", [20, 600])
def test_equal_similarities_are_taken_by_place(count: int) -> None:
    draw = np.random.default_rng(0)
    train = np.eye(4, dtype=np.float32)[draw.integers(0, 4, count)]  # all cosines are 0 or 1, exactly
    queries = np.eye(4, dtype=np.float32)
    for k in (1, 3, count // 2, count):
        ((_, index),) = nearest(train, queries, k)
        expected = np.argsort(-(queries @ train.T), axis=1, kind="stable")[:, :k]
        assert (index == expected).all(), k


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.evaluators.knn._CHUNK_BYTES", 10 * 4 * 500)
    train, _ = blobs(500, 8, 3, seed=1)
    queries, _ = blobs(35, 8, 3, seed=2)
    assert [len(index) for _, index in nearest(train, queries, 5)] == [10, 10, 10, 5]


def test_knn_at_a_tiny_temperature_is_the_nearest_neighbour() -> None:
    train, labels = blobs(90, 12, 4, seed=1)
    votes = knn_probabilities(train, labels, train, 4, [20], 1e-4)[20]
    assert np.isfinite(votes).all()
    assert (votes.argmax(1) == labels).all()
