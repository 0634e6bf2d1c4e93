"""What is recorded with each evaluation: every metric in its order, and what an oracle would have shown, marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, t

from pipeline.base.store import Store, open_store
from pipeline.evaluate.evaluators.registry import REGISTRY
from pipeline.evaluate.metrics import Outcomes, of_probabilities, top1
from pipeline.evaluate.metrics.classification import is_oracle, over_runs
from pipeline.evaluate.metrics.intervals import bootstrap_mean, grouped_sums, percentiles, resampled
from pipeline.evaluate.worker import run_evaluation
from pipeline.records.score import EvaluationResult, list_results
from tests.support.stored_models import planned_of, put_network, put_pictures, tiny

CLASSES = 7
SHORT = {"steps": 12, "batch_size": 32, "runs": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"l2": [1e-4, 0.1, 3.0]},
    "knn": {"k": [1, 7, 60]},
    "ridge": {"l2": [1.0, 1e3, 1e5]},
    "sgd": {"learning_rates": [1e-4, 1e-2, 10.0], "steps": 40, "batch_size": 32, "blocks": 2},
    "fewshot": {"shots": 3, "other_l2": [1.0, 1e5]},
    "finetune": {"learning_rates": [0.01, 1.0], **SHORT},
}
PROBABILITIES = ["top1", "top5", "mean_per_class", "nll", "ece"]
RECORDED = {
    "linear": [*PROBABILITIES, "oracle_top1"],
    "knn": [*PROBABILITIES, "oracle_top1"],
    "sgd": [*PROBABILITIES, "oracle_top1"],
    "ridge": ["top1", "top5", "mean_per_class", "oracle_top1"],
    "fewshot": ["top1", "top5", "mean_per_class", "oracle_top1_l2_1", "oracle_top1_l2_100000"],
    "finetune": [*PROBABILITIES, "top1_runs_mean", "top1_runs_std"],
    "classify": PROBABILITIES,
    "inspect": [],
}


def pictures(count: int, seed: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise that is brighter the larger the class is, not always."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes, count)
    pixels = draw.normal(90, 60, (count, 8, 8, 3)) + 25 * labels[:, None, None, None]
    return pixels.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Datasets of seven classes, and below "many" of several labels."""
    store = open_store(str(tmp_path_factory.mktemp("recorded")))
    put_pictures(store, "train", *pictures(200, 1, CLASSES), CLASSES)
    put_pictures(store, "test", *pictures(80, 2, CLASSES), CLASSES)
    return store


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Pictures with any number of labels: label c is there when colour c is rather bright."""
    store = open_store(str(tmp_path_factory.mktemp("several")))
    for name, count, seed in (("train", 120, 1), ("test", 40, 2)):
        draw = np.random.default_rng(seed)
        has = draw.random((count, 3)) < 0.5
        pixels = draw.integers(0, 180, (count, 8, 8, 3)) + 20 * has[:, None, None]
        put_pictures(store, name, pixels.astype(np.uint8), [np.flatnonzero(row) for row in has], 3)
    return store


def recorded(store: Store, evaluator: str, **settings: Any) -> EvaluationResult:
    """The result of performing it."""
    asked = planned_of(evaluator, put_network(store, tiny(CLASSES, pool="cls")), **settings)
    assert run_evaluation(store, asked)
    return next(result for result in list_results(store) if result.id == asked.id)


@pytest.mark.parametrize("evaluator", sorted(RECORDED))
def test_every_metric_is_recorded_in_its_order(store: Store, evaluator: str) -> None:
    result = recorded(store, evaluator, **SETTINGS.get(evaluator, {}))
    assert [metric.name for metric in result.metrics] == RECORDED[evaluator]
    assert [metric for metric in result.metrics if not metric.low <= metric.value <= metric.high] == []


@pytest.mark.parametrize("evaluator", ["linear", "knn", "ridge", "finetune"])
def test_with_several_labels_the_headline_is_average_precision(several: Store, evaluator: str) -> None:
    result = recorded(several, evaluator, **SETTINGS[evaluator])
    expected = {"ridge": ["mAP", "oracle_mAP"], "finetune": ["mAP", "nll", "mAP_runs_mean", "mAP_runs_std"]}
    assert [metric.name for metric in result.metrics] == expected.get(evaluator, ["mAP", "nll", "oracle_mAP"])
    if evaluator in ("knn", "ridge"):
        setting = "k" if evaluator == "knn" else "l2"
        alone = [recorded(several, evaluator, **{setting: [one]}) for one in SETTINGS[evaluator][setting]]
        assert result.metrics[-1].value == pytest.approx(max(one.metrics[0].value for one in alone), abs=1e-6)


def test_with_five_classes_there_is_no_top5(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = open_store(str(tmp_path_factory.mktemp("five")))
    put_pictures(store, "train", *pictures(60, 1, 5), 5)
    put_pictures(store, "test", *pictures(30, 2, 5), 5)
    names = [metric.name for metric in recorded(store, "knn", k=[3]).metrics]
    assert names == ["top1", "mean_per_class", "nll", "ece", "oracle_top1"]


@pytest.mark.parametrize(("evaluator", "setting"), [("knn", "k"), ("ridge", "l2")])
def test_the_oracle_is_the_best_of_all_settings_on_the_test_data(store: Store, evaluator: str, setting: str) -> None:
    candidates = SETTINGS[evaluator][setting]
    alone = [value_of(store, evaluator, **{setting: [one]}) for one in candidates]
    assert len(set(alone)) > 1
    (oracle,) = REGISTRY[evaluator].run(store, planned_of(evaluator, **{setting: candidates})).metrics
    assert (oracle.name, oracle.value) == ("oracle_top1", pytest.approx(max(alone)))
    assert is_oracle(oracle)


@pytest.mark.parametrize(("evaluator", "setting"), [("linear", "l2"), ("sgd", "learning_rates")])
def test_the_oracle_chooses_among_what_was_fitted_for_the_choice(store: Store, evaluator: str, setting: str) -> None:
    """A useless setting is chosen by nobody; a good one is seen by the oracle, and the honest result is among it."""
    good, useless = {"l2": (1e-1, 1e6), "learning_rates": (1e-2, 1e-12)}[setting]
    rest = {"steps": 40, "batch_size": 32} if evaluator == "sgd" else {}
    found = REGISTRY[evaluator].run(store, planned_of(evaluator, **{setting: [good, useless]}, **rest))
    alone = REGISTRY[evaluator].run(store, planned_of(evaluator, **{setting: [useless]}, **rest))
    assert found.metrics[-1].value >= top1(found.outcomes).value > alone.metrics[-1].value


def value_of(store: Store, evaluator: str, **settings: Any) -> float:
    """Its top-1."""
    return top1(REGISTRY[evaluator].run(store, planned_of(evaluator, **settings)).outcomes).value


def predicted(count: int) -> Outcomes:
    """Outcomes of overconfident probabilities."""
    draw = np.random.default_rng(5)
    shares = draw.dirichlet(np.full(CLASSES, 0.3), count)
    labels = (np.sqrt(shares).cumsum(1) / np.sqrt(shares).sum(1, keepdims=True) > draw.random((count, 1))).argmax(1)
    return of_probabilities(tuple(map(str, range(count))), labels, shares)


def test_intervals_over_trainings_are_those_of_scipy() -> None:
    shares = [0.91, 0.93, 0.905]
    mean, deviation = over_runs("top1", shares)
    assert (mean.name, deviation.name) == ("top1_runs_mean", "top1_runs_std")
    middle, spread = np.mean(shares), np.std(shares, ddof=1)
    assert (mean.value, deviation.value) == pytest.approx((middle, spread))
    assert (mean.low, mean.high) == pytest.approx(t.interval(0.95, 2, loc=middle, scale=spread / np.sqrt(3)))
    assert (deviation.low, deviation.high) == pytest.approx(
        (spread * np.sqrt(2 / chi2.ppf(0.975, 2)), spread * np.sqrt(2 / chi2.ppf(0.025, 2)))
    )
    assert over_runs("top1", [0.9]) == ()
    assert over_runs("top1", [0.99, 1.0])[0].high == 1.0
    assert [(one.low, one.high) for one in over_runs("mAP", [0.5, 0.5])] == [(0.5, 0.5), (0.0, 0.0)]


def test_drawing_groups_gives_the_interval_of_drawing_samples() -> None:
    outcomes = predicted(20_000)
    assert outcomes.nll is not None
    low, high = percentiles(np.concatenate([weights @ outcomes.nll / 20_000 for weights in resampled(20_000, 3, 1500)]))
    found = percentiles(bootstrap_mean(outcomes.nll, 4))
    assert found == pytest.approx((low, high), abs=0.08 * (high - low))
    exact = percentiles(bootstrap_mean(outcomes.nll[:4096], 4))
    grouped = percentiles(grouped_sums(outcomes.nll[:4096], np.zeros(4096, np.int64), 1, 5)[:, 0] / 4096)
    assert grouped == pytest.approx(exact, abs=0.08 * (exact[1] - exact[0]))


def test_what_groups_hide_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = predicted(20_000)
    assert outcomes.nll is not None
    fine = percentiles(bootstrap_mean(outcomes.nll, 4))
    monkeypatch.setattr("pipeline.evaluate.metrics.intervals._GROUPS", 3)
    assert percentiles(bootstrap_mean(outcomes.nll, 4)) == pytest.approx(fine, abs=0.08 * (fine[1] - fine[0]))


def test_sums_of_groups_stay_in_their_strata() -> None:
    values, strata = np.arange(3000.0), np.arange(3000) % 3
    sums = grouped_sums(values, strata, 4, 1)
    assert sums.shape == (2000, 4)
    assert sums.mean(axis=0) == pytest.approx([values[strata == one].sum() for one in range(4)], rel=0.01)
    of_one = (values * (strata == 0)).std() * np.sqrt(3000)
    assert sums[:, 0].std() == pytest.approx(of_one, rel=0.08)
