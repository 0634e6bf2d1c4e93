"""VTAB-1k: every evaluator that chooses sees the same 1,000 samples; classes that are not covered are named."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import InputError
from pipeline.base.store import Store, open_store
from pipeline.evaluate import splits as split
from pipeline.evaluate.evaluators.registry import REGISTRY
from pipeline.evaluate.features import HEAD_INPUT, load_features
from pipeline.evaluate.finetuning.data import TuningSamples
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import FinetuneSettings, Task
from pipeline.evaluate.task_data import open_task
from pipeline.stream.dataset import DatasetReader
from tests.support.stored_models import RAW, planned_of, put_network, put_pictures, tiny

CLASSES = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"l2": [1e-2, 10.0]},
    "knn": {"k": [3, 30]},
    "ridge": {"l2": [1.0, 1e4]},
    "sgd": {"learning_rates": [1e-2, 1.0], "steps": 20, "batch_size": 16},
    "finetune": {"learning_rates": [0.01, 0.1], "steps": 4, "batch_size": 16, "runs": 1},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """250 training samples; no sample of "rare" is of class 3."""
    store = open_store(str(tmp_path_factory.mktemp("vtab")))
    for name, count, seed in (("train", 250, 1), ("test", 40, 2)):
        put_pictures(store, name, *pictures(count, seed), CLASSES)
    pixels, labels = pictures(250, 1)
    put_pictures(store, "rare", pixels, labels % 3, CLASSES)
    return store


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise that is brighter the larger the class is."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    pixels = draw.normal(90, 60, (count, 8, 8, 3)) + 30 * labels[:, None, None, None]
    return pixels.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 and 20 samples stand for the 800 and 200: the numbers themselves are tested with the split."""
    monkeypatch.setattr(split, "VTAB_TRAIN", 80)
    monkeypatch.setattr(split, "VTAB_VALIDATION", 20)
    monkeypatch.setattr("pipeline.evaluate.task_data.VTAB_TRAIN", 80)


def asked(
    evaluator: str, train: str = "train", allow: bool = False, by: Any = "vtab", **settings: Any
) -> PlannedEvaluation:
    """An evaluation with this split."""
    task = Task(train=train, test="test", split=by, allow_missing_classes=allow)
    return replace(planned_of(evaluator, **settings), task=task)


@pytest.mark.parametrize("evaluator", sorted(SETTINGS))
def test_classes_that_are_not_covered_are_named_and_may_be_allowed(store: Store, evaluator: str) -> None:
    with pytest.raises(InputError, match="1 of 4 classes have no sample among the 80 of VTAB-1k: 3 - allow missing"):
        REGISTRY[evaluator].run(store, asked(evaluator, "rare", **SETTINGS[evaluator]))
    found = REGISTRY[evaluator].run(store, asked(evaluator, "rare", allow=True, **SETTINGS[evaluator]))
    assert len(found.outcomes.keys) == 40


@pytest.mark.parametrize("evaluator", sorted(SETTINGS))
def test_what_is_not_among_the_1000_changes_nothing(store: Store, evaluator: str) -> None:
    """The same pictures under the same keys, with wrong labels for all that are not used."""
    if store.head("datasets/spoiled/dataset.json") is None:
        used = used_pictures(store)
        assert used.sum() == 100
        pixels, labels = pictures(250, 1)
        put_pictures(store, "spoiled", pixels, np.where(used, labels, (labels + 1) % CLASSES), CLASSES)
    found, spoiled = (
        REGISTRY[evaluator].run(store, asked(evaluator, train, **SETTINGS[evaluator])) for train in ("train", "spoiled")
    )
    assert found.chosen == spoiled.chosen
    assert np.array_equal(found.outcomes.predictions, spoiled.outcomes.predictions)
    whole, of_spoiled = (
        REGISTRY[evaluator].run(store, asked(evaluator, train, by="share", **SETTINGS[evaluator])).outcomes.predictions
        for train in ("train", "spoiled")
    )
    assert not np.array_equal(whole, of_spoiled), "all samples do tell"


def used_pictures(store: Store) -> np.ndarray:
    """Which of the pictures of "train", in the order in which they were made, are among the 1,000."""
    with closing(DatasetReader(store, "train")) as reader:
        keys = [key for shard in range(len(reader.shards)) for key in reader.keys(shard)]
    taken = {keys[row] for row in np.flatnonzero(open_task(store, asked("knn")).masks().used)}
    origins = {}
    for info in store.list("datasets/train/shard-"):
        if info.key.endswith(".parquet"):
            table = pq.read_table(store.local_path(info.key))
            origins.update(zip(table["origin"].to_pylist(), table["key"].to_pylist(), strict=True))
    return np.array([origins[origin] in taken for origin in sorted(origins)])


def test_the_masks_are_those_of_the_split(store: Store) -> None:
    data = open_task(store, asked("linear"))
    train, masks = data.train(HEAD_INPUT), data.masks()
    choice, keys = data.choice(train), load_features(store, RAW, "train").keys
    for part, mask in ((choice.fit, masks.fit), (choice.validation, masks.held_out), (train, masks.used)):
        assert set(part.keys) == {key for key, inside in zip(keys, mask, strict=True) if inside}
    ((streamed, held),) = data.train_stream(HEAD_INPUT)
    assert (streamed.keys, held.sum()) == (train.keys, 20)
    assert tuple(np.array(streamed.keys)[held]) == choice.validation.keys


def test_only_the_1000_are_in_memory_for_fine_tuning(store: Store) -> None:
    used = open_task(store, asked("finetune")).masks().used
    settings = FinetuneSettings(batch_size=16)
    some, every = (
        TuningSamples(store, "train", put_network(store, tiny(CLASSES)), settings, CLASSES, is_many=False, used=one)
        for one in (used, None)
    )
    with some.batches(used, 3) as few, every.batches(used, 3) as many:
        for _ in range(10):
            one, other = next(few), next(many)
            assert (one.images == other.images).all()
            assert (one.labels == other.labels).all()
    assert some._memory is not None
    assert len(some._memory[0]) == 100
