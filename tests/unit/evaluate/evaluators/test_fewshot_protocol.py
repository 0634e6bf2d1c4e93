"""Few-shot and the linear probe see images in their own ways: features and ids are others than those of k-NN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.config import build
from pipeline.base.store import Store, open_store
from pipeline.evaluate.evaluators import fewshot
from pipeline.evaluate.evaluators.registry import REGISTRY
from pipeline.evaluate.features import load_features
from pipeline.evaluate.metrics import top1
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import PlannedEvaluation, plan_evaluations
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.worker import feature_jobs, run_evaluation, run_feature_job
from pipeline.records.dataset import read_dataset_card
from tests.support.stored_models import planned_of, put_network, put_pictures, tiny

CLASSES = 3


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Wide pictures, so that a square is another picture than a crop."""
    store = open_store(str(tmp_path))
    for name, count, seed in (("train", 60, 1), ("test", 20, 2)):
        draw = np.random.default_rng(seed)
        labels = np.arange(count) % CLASSES
        pixels = draw.normal(90, 60, (count, 10, 24, 3)) + 30 * labels[:, None, None, None]
        put_pictures(store, name, pixels.clip(0, 255).astype(np.uint8), labels, CLASSES)
    return store


def plan(store: Store, model_ref: ModelRef, *entries: dict[str, Any]) -> list[PlannedEvaluation]:
    """What a suite of these asks for."""
    suite = [{"tasks": ["task"]} | entry for entry in entries]
    tasks = {"task": {"train": "train", "test": "test", "validation": 0.3}}
    recipe = build(EvaluateRecipe, {"tasks": tasks, "suite": suite, "baselines": False})
    return plan_evaluations(
        [model_ref], recipe, {name: read_dataset_card(store, name).digest for name in ("train", "test")}
    )


def test_both_sides_are_resized_in_the_proportion_of_256_to_224(store: Store) -> None:
    for size, resize in ((224, 256), (384, 439), (8, 9)):
        model_ref = ModelRef("w", "k", {"size": size, "resize": size, "mode": "short", "filter": "bicubic"}, 100)
        (item,) = plan(store, model_ref, {"evaluator": "fewshot"})
        assert item.key.transform == {"size": size, "resize": resize, "mode": "square", "filter": "bilinear"}
        assert item.key.transform == item.model_ref.transform
        (own,) = plan(store, model_ref, {"evaluator": "fewshot", "settings": {"transform": "model"}})
        assert own.key.transform == model_ref.transform
        assert own.id != item.id


def test_the_linear_probe_sees_the_short_side_at_the_size_of_the_crop(store: Store) -> None:
    for size in (224, 28):
        model_ref = ModelRef("w", "k", {"size": size, "resize": 2 * size, "mode": "square", "filter": "bilinear"}, 100)
        (item,) = plan(store, model_ref, {"evaluator": "linear"})
        assert item.key.transform == {"size": size, "resize": size, "mode": "short", "filter": "bicubic"}
        assert item.key.transform == item.model_ref.transform
        (own,) = plan(store, model_ref, {"evaluator": "linear", "settings": {"transform": "model"}})
        assert own.key.transform == model_ref.transform
        assert own.id != item.id
    for evaluator in ("knn", "ridge", "sgd", "finetune", "classify"):
        (item,) = plan(store, model_ref, {"evaluator": evaluator})
        assert item.model_ref == model_ref, "no protocol says how"


def test_its_features_are_stored_apart(store: Store) -> None:
    model_ref = put_network(store, tiny(CLASSES))
    knn, few, own = plan(
        store,
        model_ref,
        {"evaluator": "knn", "settings": {"k": [3]}},
        {"evaluator": "fewshot", "settings": {"shots": 5}},
        {"evaluator": "fewshot", "settings": {"shots": 5, "transform": "model"}},
    )
    wanted = feature_jobs([knn, few, own])
    assert wanted[knn.id] == wanted[own.id]
    assert {one.id for one in wanted[knn.id]}.isdisjoint(one.id for one in wanted[few.id])
    for one in (*wanted[knn.id], *wanted[few.id]):
        run_feature_job(store, one)
    before = sorted(info.key for info in store.list("features/"))
    assert sum(key.endswith("features.json") for key in before) == 4, "two datasets, seen in two ways"
    assert all(run_evaluation(store, item) for item in (knn, few, own))
    assert sorted(info.key for info in store.list("features/")) == before
    seen = [load_features(store, item.model_ref, "test").features for item in (few, own)]
    assert not np.array_equal(*seen)


def test_one_decomposition_serves_every_penalty_and_none_is_chosen(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve, solved = fewshot.np.linalg.eigh, []
    monkeypatch.setattr(fewshot.np.linalg, "eigh", lambda matrix: solved.append(matrix.shape) or solve(matrix))
    model_ref = put_network(store, tiny(CLASSES))
    found = REGISTRY["fewshot"].run(store, planned_of("fewshot", model_ref, shots=5, other_l2=[1.0, 1e6]))
    assert len(solved) == 1
    assert found.chosen == {}
    assert [metric.name for metric in found.metrics] == ["oracle_top1_l2_1", "oracle_top1_l2_1e+06"]
    for metric, l2 in zip(found.metrics, (1.0, 1e6), strict=True):
        alone = REGISTRY["fewshot"].run(store, planned_of("fewshot", model_ref, shots=5, l2=l2))
        assert metric.value == top1(alone.outcomes).value
