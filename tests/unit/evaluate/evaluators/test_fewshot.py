"""Few-shot least squares against a direct solve in float64; shots are nested."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.evaluate.evaluators import fewshot
from pipeline.evaluate.evaluators.fewshot import FewshotSystem, choose_shots
from pipeline.evaluate.recipe import FewshotSettings
from tests.support.blobs import blobs


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
def test_every_l2_equals_a_direct_solve_from_one_decomposition(
    count: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = blobs(count, width, 4, seed=1)
    queries, _ = blobs(30, width, 4, seed=2)
    decomposed = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(fewshot.np.linalg, "eigh", lambda matrix: decomposed.append(matrix.shape) or eigh(matrix))
    system = FewshotSystem(features, labels, 4)
    l2s = [2.0**10, 2.0**20, 1.0, 1e-3]
    for l2, found in system.scores_of_all(queries, l2s).items():
        expected = direct_ridge(features, labels, queries, 4, l2)
        assert np.abs(found - expected).max() < 1e-8 * max(1.0, np.abs(expected).max())
        assert np.array_equal(found, system.scores(queries, l2))
    smaller = min(count, width + 1)
    assert decomposed == [(smaller, smaller)]


def test_the_numbers_of_the_protocol() -> None:
    settings = FewshotSettings()
    assert (fewshot.BIAS, settings.l2, settings.shots) == (100.0, 1024.0, 10)


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
