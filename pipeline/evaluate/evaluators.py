"""The table of evaluators: each turns a planned evaluation into outcomes, what it chose, and artefacts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.features import load_features
from pipeline.evaluate.inspect.pictures import patch_filters, position_similarity
from pipeline.evaluate.metrics import Outcomes
from pipeline.evaluate.probe.fewshot import choose_shots, fit_ridge
from pipeline.evaluate.probe.knn import knn_probabilities
from pipeline.evaluate.probe.linear import Standardiser, choose_l2, fit_logistic, probabilities
from pipeline.evaluate.split import validation_mask
from pipeline.evaluate.subject import PixelNetwork, load_network
from pipeline.evaluate.suite import SETTINGS, FewshotSettings, FinetuneSettings, KnnSettings, LinearSettings
from pipeline.evaluate.transfer.finetune import finetune, load_images, predict
from pipeline.models.vit import ViT
from pipeline.records.dataset import read_dataset_card

NUM_EXAMPLES = 24  # test images shown with their predictions


@dataclass(frozen=True)
class Finding:
    """What an evaluator found."""

    outcomes: Outcomes
    chosen: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, NDArray[Any]] = field(default_factory=dict)


def _settings(planned: Planned) -> Any:
    given = {name: value for name, value in planned.key.settings.items() if name != "validation"}
    return SETTINGS[planned.key.evaluator].model_validate(given)


def _num_classes(workspace: Store, planned: Planned) -> int:
    names = {name: read_dataset_card(workspace, name).class_names for name in (planned.task.train, planned.task.test)}
    if names[planned.task.train] != names[planned.task.test]:
        raise InputError(f"task {planned.key.task}: {planned.task.train} and {planned.task.test} have other classes")
    return len(names[planned.task.train])


def _outcomes(keys: tuple[str, ...], labels: NDArray[np.int64], weights_NK: NDArray[Any]) -> Outcomes:
    predictions = weights_NK.argmax(axis=1)
    chosen = weights_NK[np.arange(len(predictions)), predictions].astype(np.float32)
    return Outcomes(keys, labels, predictions.astype(np.int64), chosen)


def linear(workspace: Store, planned: Planned) -> Finding:
    """Logistic regression; l2 chosen on validation, refitted on all training samples."""
    settings: LinearSettings = _settings(planned)
    classes = _num_classes(workspace, planned)
    train = load_features(workspace, planned.subject, planned.task.train)
    test = load_features(workspace, planned.subject, planned.task.test)
    held = validation_mask(train.keys, planned.task.validation)
    fitting, checking = train.take(~held), train.take(held)
    scale = Standardiser(fitting.features)
    l2, start = choose_l2(
        (scale(fitting.features), fitting.labels),
        (scale(checking.features), checking.labels),
        classes,
        settings.l2,
        settings.max_iterations,
    )
    scale = Standardiser(train.features)
    weights = fit_logistic(
        scale(train.features), train.labels, classes, l2, max_iterations=settings.max_iterations, start=start
    )
    return Finding(_outcomes(test.keys, test.labels, probabilities(weights, scale(test.features))), {"l2": l2})


def knn(workspace: Store, planned: Planned) -> Finding:
    """Weighted k-NN; k chosen on validation (ties: the smaller)."""
    settings: KnnSettings = _settings(planned)
    classes = _num_classes(workspace, planned)
    train = load_features(workspace, planned.subject, planned.task.train)
    test = load_features(workspace, planned.subject, planned.task.test)
    held = validation_mask(train.keys, planned.task.validation)
    fitting, checking = train.take(~held), train.take(held)
    votes = knn_probabilities(
        fitting.features, fitting.labels, checking.features, classes, settings.k, settings.temperature
    )
    k = max(sorted(votes), key=lambda k: (votes[k].argmax(axis=1) == checking.labels).mean())
    found = knn_probabilities(train.features, train.labels, test.features, classes, [k], settings.temperature)
    return Finding(_outcomes(test.keys, test.labels, found[k]), {"k": k})


def fewshot(workspace: Store, planned: Planned) -> Finding:
    """Ridge regression on a few samples per class, drawn by the seed. Chooses nothing."""
    settings: FewshotSettings = _settings(planned)
    classes = _num_classes(workspace, planned)
    train = load_features(workspace, planned.subject, planned.task.train)
    test = load_features(workspace, planned.subject, planned.task.test)
    rows = choose_shots(train.labels, classes, settings.shots, planned.key.seed)
    ridge = fit_ridge(train.features[rows], train.labels[rows], classes, settings.l2)
    return Finding(_outcomes(test.keys, test.labels, ridge.scores(test.features)))


def finetuned(workspace: Store, planned: Planned) -> Finding:
    """Fine-tuning; learning rate chosen on validation, trained again on all training samples."""
    settings: FinetuneSettings = _settings(planned)
    classes, seed = _num_classes(workspace, planned), planned.key.seed
    train = load_images(workspace, planned.subject, planned.task.train)
    test = load_images(workspace, planned.subject, planned.task.test)
    held = validation_mask(train.keys, planned.task.validation)
    fitting, checking = train.take(~held), train.take(held)
    shares: dict[float, float] = {}
    for rate in settings.learning_rates:
        network = finetune(workspace, planned.subject, fitting, classes, settings, rate, seed)
        predictions = predict(network, checking.images).argmax(axis=1)
        shares[rate] = float((predictions == checking.labels.numpy()).mean())
    rate = max(sorted(shares), key=lambda rate: shares[rate])
    network = finetune(workspace, planned.subject, train, classes, settings, rate, seed)
    found = predict(network, test.images)
    return Finding(_outcomes(test.keys, test.labels.numpy(), found), {"learning_rate": rate})


def classify(workspace: Store, planned: Planned) -> Finding:
    """The pretrained network's own head on the test dataset, whose classes must be the network's."""
    model = _vit(workspace, planned)
    classes = _num_classes(workspace, planned)
    if model.config.num_classes != classes:
        raise InputError(
            f"classify on {planned.key.task}: the network has {model.config.num_classes} classes, not {classes}"
        )
    test = load_images(workspace, planned.subject, planned.task.test)
    return Finding(_outcomes(test.keys, test.labels.numpy(), predict(model, test.images)))


def inspect(workspace: Store, planned: Planned) -> Finding:
    """Pictures of the network, its predictions on the first test images, and its confusion matrix."""
    model = _vit(workspace, planned)
    finding = classify(workspace, planned)
    outcomes = finding.outcomes
    test = load_images(workspace, planned.subject, planned.task.test)
    classes = _num_classes(workspace, planned)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (outcomes.labels, outcomes.predictions), 1)
    shown = slice(0, NUM_EXAMPLES)
    artefacts: dict[str, NDArray[Any]] = {
        "patch_filters": patch_filters(model),
        "position_similarity": position_similarity(model),
        "sample_images": np.ascontiguousarray(test.images[shown].permute(0, 2, 3, 1).numpy()),
        "sample_labels": outcomes.labels[shown],
        "sample_predictions": outcomes.predictions[shown],
        "sample_probabilities": outcomes.probabilities[shown],
        "confusion": confusion,
    }
    return Finding(outcomes, artefacts=artefacts)


def _vit(workspace: Store, planned: Planned) -> ViT:
    network = load_network(workspace, planned.subject)
    if isinstance(network, PixelNetwork):
        raise DamageError(f"{planned.key.evaluator} needs a network, not raw pixels")
    return network


EVALUATORS: dict[str, Callable[[Store, Planned], Finding]] = {
    "linear": linear,
    "knn": knn,
    "fewshot": fewshot,
    "finetune": finetuned,
    "classify": classify,
    "inspect": inspect,
}
SHARES_FEATURES = {"linear", "knn", "fewshot"}
