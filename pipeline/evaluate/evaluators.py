"""The table of evaluators: each turns a planned evaluation into outcomes, what it chose, and artefacts.

::

    task_data.py  the task: refused where it leaks, else its parts as types
    probing.py    linear, knn, fewshot, over stored features; ridge_probe.py and sgd_probe.py too
    transfer/     fine-tuning
    here          the network's own head, and pictures of it
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.finding import Finding
from pipeline.evaluate.inspect.pictures import patch_filters, position_similarity
from pipeline.evaluate.metrics import confusion
from pipeline.evaluate.networks import PixelNetwork, warm_class_names, warm_network
from pipeline.evaluate.probing import fewshot, knn, linear, settings_of, wanted_specs
from pipeline.evaluate.ridge_probe import ridge
from pipeline.evaluate.sgd_probe import sgd
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.evaluate.transfer.finetune import predict
from pipeline.evaluate.transfer.sweep import finetuned
from pipeline.models.vit import ViT
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.passes import spans_ahead

__all__ = ["EVALUATORS", "NUM_EXAMPLES", "SHARES_FEATURES", "Finding", "wanted_specs"]
NUM_EXAMPLES = 24  # test images shown with their predictions


def classify(workspace: Store, planned: Planned) -> Finding:
    """The pretrained network's own head on the test dataset, whose classes must be the network's."""
    return _classified(_vit(workspace, planned), open_task(workspace, planned), planned)


def inspect(workspace: Store, planned: Planned) -> Finding:
    """Pictures of the network, its predictions on the first test images, and its confusion matrix."""
    model, data = _vit(workspace, planned), open_task(workspace, planned)
    data.require_one_label("inspect")
    outcomes = _classified(model, data, planned).outcomes
    shown = slice(0, NUM_EXAMPLES)
    artefacts: dict[str, NDArray[Any]] = {
        "patch_filters": patch_filters(model),
        "position_similarity": position_similarity(model),
        "sample_images": _first_images(workspace, planned),
        "sample_labels": outcomes.labels[shown],
        "sample_predictions": outcomes.predictions[shown],
        "sample_probabilities": outcomes.probabilities[shown],
        "confusion": confusion(outcomes, data.num_classes),
    }
    return Finding(outcomes, data.num_classes, artefacts=artefacts)


def _classified(model: ViT, data: TaskData, planned: Planned) -> Finding:
    _require_same_classes(model, data, planned)
    transform = planned.subject.evaluation_transform
    with closing(DatasetReader(data.workspace, data.task.test)) as reader:
        found = predict(model, reader, transform, data.num_classes, is_many=data.is_many)
    outcomes = data.outcomes(found.keys, found.labels, found.probabilities, calibrated=True)
    return Finding(outcomes, data.num_classes)


def _require_same_classes(model: ViT, data: TaskData, planned: Planned) -> None:
    """Raise InputError where the head's classes are not the dataset's: another number, or other names."""
    what, count = f"{planned.key.evaluator} on {planned.key.task}", model.config.num_classes
    if count != data.num_classes:
        raise InputError(f"{what}: the network has {count} classes, not {data.num_classes}")
    names = warm_class_names(data.workspace, planned.subject)
    if settings_of(planned).classes == "order" or not names:
        return
    for number, (own, other) in enumerate(zip(names, data.class_names, strict=True)):
        if own != other:
            raise InputError(
                f"{what}: class {number} of the network is {own!r}, of {data.task.test} {other!r}",
                "judge it on its own classes; where only the names differ, with the setting classes: order",
            )


def _first_images(workspace: Store, planned: Planned) -> NDArray[np.uint8]:
    """(NUM_EXAMPLES, S, S, 3), fewer where there are fewer."""
    with closing(DatasetReader(workspace, planned.task.test)) as reader:
        span = (0, min(NUM_EXAMPLES, reader.card.num_samples))
        (batch,) = spans_ahead(reader, planned.subject.evaluation_transform, [span])
    return np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())


def _vit(workspace: Store, planned: Planned) -> ViT:
    network = warm_network(workspace, planned.subject)
    if isinstance(network, PixelNetwork):
        raise DamageError(f"{planned.key.evaluator} needs a network, not raw pixels")
    return network


EVALUATORS: dict[str, Callable[[Store, Planned], Finding]] = {
    "linear": linear,
    "sgd": sgd,
    "knn": knn,
    "ridge": ridge,
    "fewshot": fewshot,
    "finetune": finetuned,
    "classify": classify,
    "inspect": inspect,
}
SHARES_FEATURES = {"linear", "sgd", "knn", "ridge", "fewshot"}
