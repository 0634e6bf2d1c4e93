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
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, open_store
from pipeline.evaluate.evaluators import sgd as sgd_probe
from pipeline.evaluate.evaluators.inspect_model import NUM_EXAMPLES, patch_filters, position_similarity
from pipeline.evaluate.evaluators.registry import REGISTRY, Evaluator
from pipeline.evaluate.evaluators.ridge import Moments, fit_ridge
from pipeline.evaluate.features import load_features
from pipeline.evaluate.metrics import mean_ap
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.recipe import SgdSettings, Task
from pipeline.evaluate.splits import validation_mask
from pipeline.evaluate.worker import run_evaluation
from pipeline.models.vit import ViT
from pipeline.records.score import ARTEFACTS, OUTCOMES, OUTCOMES_SCHEMA, file_key, list_results
from tests.support.datasets import make_dataset
from tests.support.stored_models import RAW, planned_of, put_network, put_pictures, tiny

CLASSES = 3


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 8 x 8 pictures of a class each: colour tells the class, not always."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    pixels = draw.normal(128, 60, (count, 8, 8, 3))
    pixels[np.arange(count), :, :, labels] += 12
    return pixels.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A workspace with the datasets "train" and "test" of such pictures."""
    store = open_store(str(tmp_path_factory.mktemp("noisy")))
    put_pictures(store, "train", *samples(160, 1), CLASSES)
    put_pictures(store, "test", *samples(60, 2), CLASSES)
    return store


SHORT = {"steps": 6, "batch_size": 32, "runs": 1}
CHOOSING: list[tuple[str, str, list[float], dict[str, Any]]] = [
    ("linear", "l2", [1e-4, 0.1, 10.0], {}),
    ("knn", "k", [1, 7, 60], {}),
    ("ridge", "l2", [1.0, 1e3, 1e5], {}),
    ("sgd", "learning_rates", [1e-4, 1e-2, 10.0], {"steps": 40, "batch_size": 32}),
    ("finetune", "learning_rates", [0.01, 1.0, 10.0], SHORT),
]


@pytest.mark.parametrize(("evaluator", "setting", "candidates", "rest"), CHOOSING)
def test_settings_are_never_chosen_on_test_data(
    noisy: Store, evaluator: str, setting: str, candidates: list[float], rest: dict[str, Any]
) -> None:
    def find(values: list[float], test: str = "test") -> EvalOutput:
        return REGISTRY[evaluator].run(noisy, planned_of(evaluator, test=test, **{setting: values}, **rest))

    honest = find(candidates)
    truths = [find([value]).outcomes.predictions for value in candidates]
    assert len({truth.tobytes() for truth in truths}) == len(candidates), "each candidate has to predict its own"
    truths.append(np.random.default_rng(0).permutation(honest.outcomes.labels))
    by_origin = order_of_pictures(noisy, honest.outcomes.keys)
    for place, truth in enumerate(truths):  # under which one candidate after the other would be perfect
        name = f"{evaluator}-{place}"
        put_pictures(noisy, name, samples(60, 2)[0], truth[by_origin], CLASSES)
        found = find(candidates, name)
        assert found.chosen == honest.chosen
        assert np.array_equal(found.outcomes.predictions, honest.outcomes.predictions)
        assert np.array_equal(found.outcomes.labels, truth)


def order_of_pictures(store: Store, keys: tuple[str, ...]) -> np.ndarray:
    """Where in *keys* the pictures of "test" stand, in the order in which they were made."""
    places = {}
    for info in store.list("datasets/test/shard-"):
        if info.key.endswith(".parquet"):
            table = pq.read_table(store.local_path(info.key))
            places.update(zip(table["origin"].to_pylist(), table["key"].to_pylist(), strict=True))
    return np.array([keys.index(places[origin]) for origin in sorted(places)])


@pytest.mark.parametrize(("evaluator", "setting", "candidates", "rest"), CHOOSING)
def test_the_chosen_setting_is_refitted_on_all_training_samples(
    noisy: Store, evaluator: str, setting: str, candidates: list[float], rest: dict[str, Any]
) -> None:
    found = REGISTRY[evaluator].run(noisy, planned_of(evaluator, **{setting: candidates}, **rest))
    chosen = found.chosen[{"learning_rates": "learning_rate"}.get(setting, setting)]
    assert chosen in candidates
    alone = REGISTRY[evaluator].run(noisy, planned_of(evaluator, **{setting: [chosen]}, **rest))
    assert (alone.outcomes.predictions == found.outcomes.predictions).mean() > 0.95  # linear starts elsewhere
    assert len(found.outcomes.keys) == 60


def test_ridge_is_refitted_on_all_samples(noisy: Store) -> None:
    found = REGISTRY["ridge"].run(noisy, planned_of("ridge", l2=[100.0]))
    train, test = (load_features(noisy, RAW, name) for name in ("train", "test"))
    held = validation_mask(train.keys, 0.3).sum()
    moments = Moments(192, CLASSES)
    moments.add(train.features, train.labels)
    (ridge,) = fit_ridge(moments, [100.0 * 160 / (160 - held)])
    assert np.array_equal(found.outcomes.predictions, ridge.scores(test.features).argmax(axis=1))


@pytest.mark.parametrize("evaluator", ["linear", "ridge"])
@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_nothing_is_chosen_without_samples_on_both_sides(noisy: Store, evaluator: str, share: float) -> None:
    asked = replace(planned_of(evaluator), task=Task(train="train", test="test", validation=share))
    with pytest.raises(InputError, match="160 training samples are too few to hold out"):
        REGISTRY[evaluator].run(noisy, asked)


@pytest.mark.parametrize("steps", [1, 200])
def test_whether_the_regression_converged_is_recorded(noisy: Store, steps: int) -> None:
    found = REGISTRY["linear"].run(noisy, planned_of("linear", l2=[1e-6, 0.1], max_iterations=steps)).chosen
    assert found["converged"] is (steps == 200)
    assert ("unconverged_l2" in found) is (steps == 1)


def test_few_shot_is_drawn_by_the_seed(noisy: Store) -> None:
    first, again, other = (
        REGISTRY["fewshot"].run(noisy, planned_of("fewshot", seed=seed, shots=5)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.outcomes.predictions, again.outcomes.predictions)
    assert not np.array_equal(first.outcomes.predictions, other.outcomes.predictions)
    assert first.chosen == {}


@pytest.mark.parametrize("evaluator", ["linear", "knn", "ridge"])
def test_of_several_layers_one_is_chosen_on_validation(noisy: Store, evaluator: str) -> None:
    model_ref = put_network(noisy, tiny(CLASSES, depth=3), seed=9)
    layers = ["head-input", 1, -2]
    found = REGISTRY[evaluator].run(noisy, planned_of(evaluator, model_ref, layers=layers))
    shares = found.chosen["validation_by_layer"]
    assert list(shares) == ["head-input", "1", "-2"]
    assert shares[str(found.chosen["layer"])] == max(shares.values())
    alone = REGISTRY[evaluator].run(noisy, planned_of(evaluator, model_ref, layers=[found.chosen["layer"]]))
    assert np.array_equal(alone.outcomes.predictions, found.outcomes.predictions)
    assert "layer" not in alone.chosen


def test_sgd_heads_see_the_last_blocks_and_the_average(noisy: Store) -> None:
    few = {"blocks": 2, "learning_rates": [0.01], "steps": 3, "batch_size": 16}
    for pool, inputs in (("cls", 4), ("gap", 2)):
        model_ref = put_network(noisy, tiny(CLASSES, pool=pool), seed=8)
        asked = planned_of("sgd", model_ref, **few)
        specs = sgd_probe.feature_specs(asked)
        assert [(spec.layer, spec.pooling) for spec in specs] == [(-2, "model"), (-1, "model"), (-1, "gap")]
        loaded = {spec: load_features(noisy, model_ref, "train", spec).features for spec in specs}
        features = {f"{spec.layer}/{spec.pooling}": values for spec, values in loaded.items()}
        assert len(sgd_probe.heads_of(features, SgdSettings(**few))) == inputs
        assert REGISTRY["sgd"].run(noisy, asked).chosen["blocks"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Pictures with any number of labels: label c is there when colour c is bright."""
    store = open_store(str(tmp_path_factory.mktemp("several")))
    for name, count, seed in (("train", 120, 1), ("test", 40, 2)):
        draw = np.random.default_rng(seed)
        has = draw.random((count, CLASSES)) < 0.5
        pixels = draw.integers(0, 90, (count, 8, 8, 3)) + 150 * has[:, None, None]
        put_pictures(store, name, pixels.astype(np.uint8), [np.flatnonzero(row) for row in has], CLASSES)
    return store


@pytest.mark.parametrize(
    ("evaluator", "settings"),
    [
        ("linear", {"l2": [1e-3, 1e-1]}),
        ("knn", {"k": [3, 5]}),
        ("ridge", {}),
        ("finetune", {"steps": 60, "batch_size": 32, "learning_rates": [0.1], "runs": 2}),
    ],
)
def test_several_labels_are_judged_by_average_precision(several: Store, evaluator: str, settings: Any) -> None:
    found = REGISTRY[evaluator].run(several, planned_of(evaluator, **settings))
    assert found.outcomes.targets is not None
    assert mean_ap(found.outcomes).value > 0.95
    if evaluator == "finetune":
        assert [metric.name for metric in found.metrics] == ["mAP_runs_mean", "mAP_runs_std"]


@pytest.mark.parametrize("evaluator", ["sgd", "fewshot"])
def test_what_needs_one_label_says_so(several: Store, evaluator: str) -> None:
    with pytest.raises(InputError, match="have several labels"):
        REGISTRY[evaluator].run(several, planned_of(evaluator))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A workspace with a training and a test dataset of four classes."""
    store = open_store(str(tmp_path_factory.mktemp("workspace")))
    make_dataset(store, "train", num_samples=60, num_classes=4, size=8)
    make_dataset(store, "test", num_samples=30, num_classes=4, size=8, seed=1)
    make_dataset(store, "five", num_samples=30, num_classes=5, size=8, seed=2)
    return store


def test_inspect_gives_pictures_of_their_shapes(store: Store) -> None:
    finding = REGISTRY["inspect"].run(store, planned_of("inspect", put_network(store, tiny(pool="cls"))))
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
    finding = REGISTRY["classify"].run(store, planned_of("classify", put_network(store, tiny())))
    assert len(finding.outcomes.keys) == 30
    assert ((finding.outcomes.probabilities >= 0.25) & (finding.outcomes.probabilities <= 1)).all()


def test_what_does_not_fit_is_refused(store: Store) -> None:
    for evaluator in ("classify", "inspect"):
        with pytest.raises(InputError, match="the network has 7 classes, not 4"):
            REGISTRY[evaluator].run(store, planned_of(evaluator, put_network(store, tiny(7))))
        with pytest.raises(DamageError, match="needs a network, not raw pixels"):
            REGISTRY[evaluator].run(store, planned_of(evaluator))
    asked = replace(planned_of("knn"), task=Task(train="train", test="five"))
    with pytest.raises(InputError, match="task task: train and five have other classes"):
        REGISTRY["knn"].run(store, asked)


@pytest.mark.parametrize("evaluator", ["classify", "inspect"])
def test_a_head_of_other_classes_is_refused(noisy: Store, evaluator: str) -> None:
    """As many classes are not the same ones; weights that do not name theirs are taken at their number."""
    network = tiny(CLASSES, pool="cls")
    other = put_network(noisy, network, names=("class-0", "dress", "class-2"))
    with pytest.raises(InputError, match=f"{evaluator} on task: class 1 of the network is 'dress', of test 'class-1'"):
        REGISTRY[evaluator].run(noisy, planned_of(evaluator, other))
    nameless = put_network(noisy, network, names=())
    for asked in (planned_of(evaluator, other, classes="order"), planned_of(evaluator, nameless)):
        assert len(REGISTRY[evaluator].run(noisy, asked).outcomes.keys) == 60


def test_performing_records_what_belongs_together(store: Store) -> None:
    asked = planned_of("inspect", put_network(store, tiny(pool="cls"), seed=4))
    assert run_evaluation(store, asked)
    (result,) = (item for item in list_results(store) if item.id == asked.key.id)
    assert set(result.files) == {"outcomes.parquet", "artefacts.safetensors"}
    for name, digest in result.files.items():
        assert sha256_hex(store.read(file_key(result.id, name, digest))) == digest
    assert (result.metrics, result.num_samples) == ((), 30)
    artefacts, outcomes = (file_key(result.id, name, result.files[name]) for name in (ARTEFACTS, OUTCOMES))
    assert set(load(store.read(artefacts))) >= {"patch_filters", "confusion"}
    table = pq.read_table(store.local_path(outcomes))
    assert table.schema.equals(OUTCOMES_SCHEMA)
    assert table.num_rows == 30
    assert not run_evaluation(store, asked), "the first result stands"
    assert [item for item in list_results(store) if item.id == asked.key.id] == [result]


def test_what_goes_wrong_is_raised_and_nothing_is_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planned_of("knn", put_network(store, tiny(), seed=5), k=[3])

    def broken(*_: object) -> EvalOutput:
        raise ZeroDivisionError("by zero")

    with monkeypatch.context() as patched:
        patched.setitem(REGISTRY, "knn", Evaluator(broken))
        with pytest.raises(ZeroDivisionError):
            run_evaluation(store, asked)
    assert not list(store.list(f"evaluations/{asked.key.id}/"))
    assert run_evaluation(store, asked)
    (result,) = (item for item in list_results(store) if item.id == asked.key.id)
    assert [metric.name for metric in result.metrics][:1] == ["top1"]
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
