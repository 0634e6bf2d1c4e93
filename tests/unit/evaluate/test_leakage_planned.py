"""A planted leak is refused when a suite is planned, before anything is started; and test data has no way to choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.config import build
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store import Store, open_store
from pipeline.evaluate import leakage as leak
from pipeline.evaluate.discovery import plan_all
from pipeline.evaluate.evaluators import probe as probing
from pipeline.evaluate.evaluators.registry import REGISTRY
from pipeline.evaluate.features import HEAD_INPUT
from pipeline.evaluate.recipe import EvaluateRecipe, Task
from pipeline.evaluate.splits import Choice, TestPart
from pipeline.evaluate.task_data import open_task
from pipeline.evaluate.worker import run_evaluation
from tests.support.evaluations import RUN, make_workspace, suite_recipe, suite_tree
from tests.support.stored_models import planned_of, put_pictures

CLASSES = 3


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise pictures, each with a class."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8), np.arange(count) % CLASSES


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run, and beside its clean datasets: "again" is "held" under another name and in another order, "mixed" has one
    of its pictures among others."""
    store = open_store(str(tmp_path))
    make_workspace(store, [100, 200], last=200)
    held, labels = pictures(20, 7)
    put_pictures(store, "held", held, labels, CLASSES)
    put_pictures(store, "again", held[::-1], labels[::-1], CLASSES)
    others, of_others = pictures(60, 8)
    put_pictures(store, "mixed", np.concatenate([others, held[3:4]]), [*of_others, labels[3]], CLASSES)
    put_pictures(store, "clean", others, of_others, CLASSES)
    return store


def suite(train: str, test: str) -> EvaluateRecipe:
    """Two evaluators on one task."""
    return build(EvaluateRecipe, suite_tree(1, tasks={"task": {"train": train, "test": test}}))


def test_one_dataset_cannot_be_both() -> None:
    with pytest.raises(RecipeError, match="train and test are the same dataset 'held': scores would mean nothing"):
        suite("held", "held")


@pytest.mark.parametrize(("train", "shared"), [("again", "20 images"), ("mixed", r"1 image \(held/\w+ is mixed/\w+\)")])
def test_a_suite_whose_task_leaks_is_refused_before_anything_is_written(store: Store, train: str, shared: str) -> None:
    before = sorted(info.key for info in store.list(""))
    with pytest.raises(InputError, match=f"task task: {train} and held share {shared}") as refused:
        plan_all(store, RUN, [suite(train, "held")])
    assert refused.value.exit_code == 2
    assert sorted(info.key for info in store.list("")) == before
    asked = replace(planned_of("knn", k=[3]), task=Task(train=train, test="held", validation=0.3))
    with pytest.raises(InputError, match=f"task task: {train} and held share {shared}"):
        run_evaluation(store, asked)  # a worker looks for itself: datasets may have changed since
    assert sorted(info.key for info in store.list("")) == before
    assert plan_all(store, RUN, [suite("clean", "held")])


def test_indexes_are_read_once_however_often_a_suite_is_planned(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    refusal = leak._refusal

    def counted(*given: Any) -> str:
        compared.append("")
        return refusal(*given)

    monkeypatch.setattr(leak, "_refusal", counted)
    for _ in range(3):
        assert plan_all(store, RUN, [suite_recipe(1)])
    assert len(compared) == 1


@pytest.mark.parametrize("evaluator", ["linear", "knn"])
def test_an_evaluator_has_no_way_to_choose_with_test_data(
    store: Store, monkeypatch: pytest.MonkeyPatch, evaluator: str
) -> None:
    """One that was changed to take the test samples for its choice is stopped, whichever way it tries."""
    asked = replace(planned_of(evaluator), task=Task(train="clean", test="held", validation=0.3))
    data = open_task(store, asked)
    test, train = data.test(HEAD_INPUT), data.train(HEAD_INPUT)
    choice = data.choice(train)
    refused = "a TestPart was given where a .*Part is needed - test data must not choose"
    with pytest.raises(InputError, match=refused):
        data.choice(test)
    for parts in ((choice.fit, test), (test, choice.validation)):
        with pytest.raises(InputError, match=refused):
            Choice(*parts)
    monkeypatch.setattr(probing.TaskData, "train", lambda self, spec: self.test(spec))
    with pytest.raises(InputError, match=refused):
        REGISTRY[evaluator].run(store, asked)
    assert isinstance(test, TestPart)
