"""Ridge from streamed sums against a direct solve over all samples, in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge as SklearnRidge

from pipeline.base.errors import InputError
from pipeline.evaluate.evaluators.ridge import Moments, choose_ridge, fit_ridge, ridge_shares
from pipeline.evaluate.metrics.classification import mean_average_precision
from tests.support.blobs import blobs, label_sets

L2S = [1e-2, 1.0, 100.0, 1e4]


def streamed(features: NDArray, labels: NDArray, classes: int, cuts: list[int]) -> Moments:
    """The sums of the parts between *cuts*."""
    moments = Moments(features.shape[1], classes)
    for part, of in zip(np.split(features, cuts), np.split(labels, cuts), strict=True):
        moments.add(part, of)
    return moments


def direct(features: NDArray, labels: NDArray, classes: int, l2: float, queries: NDArray) -> NDArray:
    """By one solve with everything in memory."""
    x = features.astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-5
    z = (x - mean) / std
    targets = 2.0 * (labels if labels.ndim == 2 else np.eye(classes)[labels]) - 1
    weights = np.linalg.solve(z.T @ z + l2 * np.eye(x.shape[1]), z.T @ (targets - targets.mean(0)))
    return (queries - mean) / std @ weights + targets.mean(0)


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize(("count", "width"), [(900, 20), (15, 40)], ids=["N>D", "N<D"])
@pytest.mark.parametrize("away", [0.0, 300.0])
def test_streamed_ridge_equals_a_direct_solve(
    count: int, width: int, several: bool, away: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluate.evaluators.ridge._BLOCK", 128)
    make = label_sets if several else blobs
    features, labels = make(count, width, 4, seed=1)
    features = (features + away).astype(np.float32)
    queries = (make(30, width, 4, seed=2)[0] + away).astype(np.float32)
    moments = streamed(features, labels, 4, [1, count // 3, count // 2])
    assert moments.num_samples == count
    for ridge in fit_ridge(moments, L2S):
        expected = direct(features, labels, 4, ridge.l2, queries)
        assert np.abs(ridge.scores(queries) - expected).max() < 1e-7 * max(1.0, np.abs(expected).max()), ridge.l2


def test_ridge_equals_scikit_learns() -> None:
    features, labels = blobs(500, 10, 3, seed=1)
    scaled = ((features - features.mean(0)) / (features.std(0) + 1e-5)).astype(np.float64)
    for ridge in fit_ridge(streamed(features, labels, 3, []), L2S):
        reference = SklearnRidge(alpha=ridge.l2).fit(scaled, 2.0 * np.eye(3)[labels] - 1)
        assert np.abs(ridge.scores(features) - reference.predict(scaled)).max() < 1e-5


def test_sums_of_two_streams_are_those_of_one() -> None:
    features, labels = blobs(400, 8, 3, seed=1)
    one, other = (streamed(features[rows], labels[rows], 3, []) for rows in (slice(0, 150), slice(150, 400)))
    one.merge(other)
    one.merge(Moments(8, 3))
    empty = Moments(8, 3)
    empty.merge(one)
    whole = streamed(features, labels, 3, [])
    for merged in (one, empty):
        for found, expected in zip(merged.centred(), whole.centred(), strict=True):
            assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()


def test_l2_is_chosen_on_validation_and_ties_go_to_the_larger() -> None:
    features, labels = blobs(60, 50, 3, seed=1, spread=3.0)
    held = blobs(200, 50, 3, seed=2, spread=3.0)
    moments = streamed(features, labels, 3, [])
    parts = [(held[0][:70], held[1][:70]), (held[0][70:], held[1][70:])]
    chosen, share = choose_ridge(moments, iter(parts), L2S)
    shares = {ridge.l2: (ridge.scores(held[0]).argmax(1) == held[1]).mean() for ridge in fit_ridge(moments, L2S)}
    assert len(set(shares.values())) > 1
    assert share == pytest.approx(max(shares.values()))
    assert chosen.l2 == max(l2 for l2, share in shares.items() if share == max(shares.values()))
    easy = blobs(60, 5, 2, seed=1, spread=0.01)
    assert choose_ridge(streamed(*easy, 2, []), [easy], L2S)[0].l2 == 1e4


def test_several_labels_are_compared_over_all_parts() -> None:
    features, labels = label_sets(80, 30, 4, seed=1)
    held, truth = label_sets(300, 30, 4, seed=2)
    ridges = fit_ridge(streamed(features, labels, 4, []), L2S)
    found = ridge_shares(ridges, [(held[:70], truth[:70]), (held[70:], truth[70:])])
    assert found == pytest.approx([mean_average_precision(ridge.scores(held), truth) for ridge in ridges])
    assert len(set(found)) == len(L2S)


def test_a_choice_holds_the_scores_of_one_part_and_one_l2() -> None:
    width, classes, part = 4, 400, 250
    features, labels = blobs(2 * classes, width, classes, seed=1)
    moments = streamed(features, labels, classes, [])
    draw = np.random.default_rng(0)
    parts = ((draw.normal(size=(part, width)).astype(np.float32), draw.integers(0, classes, part)) for _ in range(40))
    tracemalloc.start()
    try:
        choose_ridge(moments, parts, L2S)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * part * classes * 8, "all of them are 160 such arrays"


def test_nothing_to_solve_or_choose_on_is_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        fit_ridge(Moments(3, 2), [1.0])
    easy = blobs(60, 5, 2, seed=1)
    with pytest.raises(InputError, match="judged on no samples"):
        choose_ridge(streamed(*easy, 2, []), [], L2S)
    with pytest.raises(ValueError, match="5 features, 4 labels"):
        Moments(5, 2).add(easy[0][:5], easy[1][:4])
