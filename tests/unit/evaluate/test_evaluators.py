"""The evaluators: settings come from the validation part alone, artefacts have their shapes, refusals are typed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, FailedError, InputError
from pipeline.base.store import Store, open_store
from pipeline.evaluate import evaluators
from pipeline.evaluate.due import Planned
from pipeline.evaluate.evaluators import EVALUATORS, NUM_EXAMPLES, Finding
from pipeline.evaluate.features import Features
from pipeline.evaluate.inspect.pictures import patch_filters, position_similarity
from pipeline.evaluate.ledger import Owner
from pipeline.evaluate.perform import perform
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.suite import SETTINGS, Task
from pipeline.evaluate.transfer.finetune import TaskImages
from pipeline.models.vit import ViT
from pipeline.records.score import OUTCOMES_SCHEMA, PIXELS, EvaluationKey, list_results
from tests.support.datasets import make_dataset
from tests.support.subjects import TRANSFORM, put_network, tiny

NOWHERE = open_store("/nonexistent")
RAW = Subject(PIXELS, "", TRANSFORM, None)
CLASSES = 3


def planned(evaluator: str, subject: Subject = RAW, **settings: Any) -> Planned:
    """An evaluation on the task of the datasets "train" and "test"."""
    key = EvaluationKey(
        weights_digest=subject.weights_digest,
        evaluator=evaluator,
        protocol_version=1,
        task="task",
        dataset_digests=("1", "2"),
        transform=TRANSFORM,
        settings=SETTINGS[evaluator].model_validate(settings).model_dump(mode="json") | {"validation": 0.3},
        seed=0,
    )
    return Planned(key, subject, Task(train="train", test="test", validation=0.3))


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Noisy 8 x 8 pictures of a class each: colour tells the class, not always."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    pixels = draw.normal(128, 60, (count, 3, 8, 8))
    pixels[np.arange(count), labels] += 12
    return pixels.clip(0, 255).astype(np.uint8), labels, tuple(f"{seed}-{row}" for row in range(count))


class Data:
    """Stands in for the datasets "train" and "test"; the labels of "test" can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts = {"train": samples(160, 1), "test": samples(60, 2)}
        monkeypatch.setattr(evaluators, "load_features", self.features)
        monkeypatch.setattr(evaluators, "load_images", self.images)
        monkeypatch.setattr(evaluators, "_num_classes", lambda *_: CLASSES)

    def set_test_labels(self, labels: np.ndarray) -> None:
        """From here on, the truth about the test samples."""
        pixels, _, keys = self.parts["test"]
        self.parts["test"] = (pixels, labels, keys)

    def features(self, _store: Store, _subject: Subject, name: str) -> Features:
        """Instead of load_features: the raw pixels."""
        pixels, labels, keys = self.parts[name]
        return Features((pixels.reshape(len(keys), -1) / 127.5 - 1).astype(np.float32), labels, keys)

    def images(self, _store: Store, _subject: Subject, name: str) -> TaskImages:
        """Instead of load_images."""
        pixels, labels, keys = self.parts[name]
        return TaskImages(torch.from_numpy(pixels), torch.from_numpy(labels), keys)


CHOOSING = [
    ("linear", "l2", [1e-4, 0.1, 10.0]),
    ("knn", "k", [1, 7, 60]),
    ("finetune", "learning_rates", [0.01, 1.0, 10.0]),
]


@pytest.mark.parametrize(("evaluator", "setting", "candidates"), CHOOSING)
def test_settings_are_never_chosen_on_test_data(
    monkeypatch: pytest.MonkeyPatch, evaluator: str, setting: str, candidates: list[float]
) -> None:
    data = Data(monkeypatch)
    rest = {"steps": 6, "batch_size": 32} if evaluator == "finetune" else {}

    def find(values: list[float]) -> Finding:
        return EVALUATORS[evaluator](NOWHERE, planned(evaluator, **{setting: values}, **rest))

    honest = find(candidates)
    truths = [find([value]).outcomes.predictions for value in candidates]
    assert len({truth.tobytes() for truth in truths}) == len(candidates), "each candidate has to predict its own"
    truths.append(np.random.default_rng(0).permutation(data.parts["test"][1]))
    for truth in truths:  # labels under which one candidate after the other would be perfect on the test data
        data.set_test_labels(truth)
        found = find(candidates)
        assert found.chosen == honest.chosen
        assert np.array_equal(found.outcomes.predictions, honest.outcomes.predictions)
        assert np.array_equal(found.outcomes.labels, truth)


@pytest.mark.parametrize(("evaluator", "setting", "candidates"), CHOOSING)
def test_the_chosen_setting_is_refitted_on_all_training_samples(
    monkeypatch: pytest.MonkeyPatch, evaluator: str, setting: str, candidates: list[float]
) -> None:
    Data(monkeypatch)
    rest = {"steps": 6, "batch_size": 32} if evaluator == "finetune" else {}
    found = EVALUATORS[evaluator](NOWHERE, planned(evaluator, **{setting: candidates}, **rest))
    (chosen,) = found.chosen.values()
    assert chosen in candidates
    alone = EVALUATORS[evaluator](NOWHERE, planned(evaluator, **{setting: [chosen]}, **rest))
    assert (alone.outcomes.predictions == found.outcomes.predictions).mean() > 0.95  # linear starts elsewhere
    assert len(found.outcomes.keys) == 60


def test_few_shot_is_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    Data(monkeypatch)
    asked = planned("fewshot", shots=5)
    first = EVALUATORS["fewshot"](NOWHERE, asked)
    again = EVALUATORS["fewshot"](NOWHERE, asked)
    other = EVALUATORS["fewshot"](NOWHERE, replace(asked, key=asked.key.model_copy(update={"seed": 1})))
    assert np.array_equal(first.outcomes.predictions, again.outcomes.predictions)
    assert not np.array_equal(first.outcomes.predictions, other.outcomes.predictions)
    assert first.chosen == {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A workspace with a training and a test dataset of four classes."""
    store = open_store(str(tmp_path_factory.mktemp("workspace")))
    make_dataset(store, "train", num_samples=60, num_classes=4, size=8)
    make_dataset(store, "test", num_samples=30, num_classes=4, size=8, seed=1)
    make_dataset(store, "five", num_samples=30, num_classes=5, size=8, seed=2)
    return store


def test_inspect_gives_pictures_of_their_shapes(store: Store) -> None:
    finding = EVALUATORS["inspect"](store, planned("inspect", put_network(store, tiny(pool="cls"))))
    shapes = {name: (array.shape, array.dtype.name) for name, array in finding.artefacts.items()}
    assert shapes == {
        "patch_filters": ((28, 4, 4, 3), "float32"),
        "position_similarity": ((2, 2, 2, 2), "float32"),
        "sample_images": ((NUM_EXAMPLES, 8, 8, 3), "uint8"),
        "sample_labels": ((NUM_EXAMPLES,), "int64"),
        "sample_predictions": ((NUM_EXAMPLES,), "int64"),
        "sample_probabilities": ((NUM_EXAMPLES,), "float32"),
        "confusion": ((4, 4), "int64"),
    }
    outcomes, confusion = finding.outcomes, finding.artefacts["confusion"]
    assert confusion.sum() == 30
    assert confusion.sum(axis=1).tolist() == np.bincount(outcomes.labels, minlength=4).tolist()
    assert np.trace(confusion) == (outcomes.labels == outcomes.predictions).sum()


def test_classify_is_the_networks_own_head(store: Store) -> None:
    finding = EVALUATORS["classify"](store, planned("classify", put_network(store, tiny())))
    assert len(finding.outcomes.keys) == 30
    assert ((finding.outcomes.probabilities >= 0.25) & (finding.outcomes.probabilities <= 1)).all()


def test_what_does_not_fit_is_refused(store: Store) -> None:
    for evaluator in ("classify", "inspect"):
        with pytest.raises(InputError, match="the network has 7 classes, not 4"):
            EVALUATORS[evaluator](store, planned(evaluator, put_network(store, tiny(7))))
        with pytest.raises(DamageError, match="needs a network, not raw pixels"):
            EVALUATORS[evaluator](store, planned(evaluator))
    asked = replace(planned("knn"), task=Task(train="train", test="five"))
    with pytest.raises(InputError, match="task task: train and five have other classes"):
        EVALUATORS["knn"](store, asked)


def test_performing_records_what_belongs_together(store: Store) -> None:
    asked = planned("inspect", put_network(store, tiny(pool="cls"), seed=4))
    assert perform(store, asked, Owner.current())
    (result,) = (item for item in list_results(store) if item.id == asked.key.id)
    prefix = f"evaluations/{asked.key.id}"
    assert set(result.files) == {"outcomes.parquet", "artefacts.safetensors"}
    for name, digest in result.files.items():
        assert sha256_hex(store.read(f"{prefix}/{name}")) == digest
    assert (result.metrics, result.num_samples) == ((), 30)
    assert set(load(store.read(f"{prefix}/artefacts.safetensors"))) >= {"patch_filters", "confusion"}
    table = pq.read_table(store.local_path(f"{prefix}/outcomes.parquet"))
    assert table.schema.equals(OUTCOMES_SCHEMA)
    assert table.num_rows == 30
    assert not perform(store, asked, Owner.current()), "somebody else's claim counts"


def test_performing_notes_why_it_failed_and_can_be_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planned("knn", put_network(store, tiny(), seed=5), k=[3])

    def broken(*_: object) -> Finding:
        raise ZeroDivisionError("by zero")

    with monkeypatch.context() as patched:
        patched.setitem(EVALUATORS, "knn", broken)
        with pytest.raises(FailedError, match="knn on task of step 100: ZeroDivisionError: by zero"):
            perform(store, asked, Owner.current())
    assert b"ZeroDivisionError" in store.read(f"evaluations/{asked.key.id}/failure-1.json")
    assert perform(store, asked, Owner.current())
    (result,) = (item for item in list_results(store) if item.id == asked.key.id)
    assert [metric.name for metric in result.metrics] == ["top1"]
    assert result.chosen == {"k": 3}


def test_position_similarity_of_known_positions() -> None:
    model = ViT(tiny(pool="cls"))
    with torch.no_grad():
        model.positions.zero_()
        model.positions[0, 0] = 9.0  # the class token's, which is left out
        model.positions[0, 1, 0] = 3.0
        model.positions[0, 2, 1] = 0.5
        model.positions[0, 3, :2] = 2.0
        model.positions[0, 4, 0] = -1.0
    found = position_similarity(model)
    half = np.sqrt(0.5)
    expected = [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]]
    np.testing.assert_allclose(found.reshape(4, 4), expected, atol=1e-6)
    assert found[0, 1, 1, 0] == pytest.approx(half)  # row 0, column 1 against row 1, column 0


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_every_place_is_like_itself(position: str, pool: str) -> None:
    found = position_similarity(ViT(tiny(position=position, pool=pool), seed=3)).reshape(4, 4)
    np.testing.assert_allclose(np.diag(found), np.ones(4), atol=1e-6)
    np.testing.assert_allclose(found, found.T, atol=1e-6)


def test_patch_filters_are_principal_components() -> None:
    model = ViT(tiny(), seed=3)
    found = patch_filters(model)
    flat = found.reshape(28, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(28), atol=1e-5)
    weights = model.patches.filters().reshape(32, -1).double().numpy()
    spread = ((weights - weights.mean(0)) @ flat.T).var(axis=0)
    assert (np.diff(spread) < 1e-9).all(), "the first has the largest variance"
    assert (flat[np.arange(28), np.abs(flat).argmax(1)] > 0).all()
    assert patch_filters(ViT(tiny(width=16, heads=2))).shape == (16, 4, 4, 3)
