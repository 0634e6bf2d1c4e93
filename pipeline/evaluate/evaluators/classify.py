"""The table of evaluators: each turns a planned evaluation into outcomes, what it chose, and artefacts.

::

    task_data.py  the task: refused where it leaks, else its parts as types
    probing.py    linear, knn, fewshot, over stored features; ridge_probe.py and sgd_probe.py too
    transfer/     fine-tuning
    here          the network's own head, and pictures of it
"""

from __future__ import annotations

from contextlib import closing

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import settings_of
from pipeline.evaluate.finetuning.trainer import predict
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.model_loader import PixelNetwork, warm_class_names, warm_network
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.models.vit import ViT
from pipeline.stream.dataset import DatasetReader


def classify(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """The pretrained network's own head on the test dataset, whose classes must be the network's."""
    return _classified(_vit(workspace, planned), open_task(workspace, planned), planned)


def _classified(model: ViT, data: TaskData, planned: PlannedEvaluation) -> EvalOutput:
    _require_same_classes(model, data, planned)
    transform = planned.subject.evaluation_transform
    with closing(DatasetReader(data.workspace, data.task.test)) as reader:
        found = predict(model, reader, transform, data.num_classes, is_many=data.is_many)
    outcomes = data.outcomes(found.keys, found.labels, found.probabilities, calibrated=True)
    return EvalOutput(outcomes, data.num_classes)


def _require_same_classes(model: ViT, data: TaskData, planned: PlannedEvaluation) -> None:
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


def _vit(workspace: Store, planned: PlannedEvaluation) -> ViT:
    network = warm_network(workspace, planned.subject)
    if isinstance(network, PixelNetwork):
        raise DamageError(f"{planned.key.evaluator} needs a network, not raw pixels")
    return network
