"""The network's own head: its class probabilities of the test samples. Nothing is fitted and nothing is chosen."""

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


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """The pretrained network's own head on the test dataset, whose classes must be the network's."""
    return classify_samples(load_vit(workspace, planned), open_task(workspace, planned), planned)


def load_vit(workspace: Store, planned: PlannedEvaluation) -> ViT:
    """The network of an evaluation. Raises DamageError for raw pixels, which have none."""
    network = warm_network(workspace, planned.model_ref)
    if isinstance(network, PixelNetwork):
        raise DamageError(f"{planned.key.evaluator} needs a network, not raw pixels")
    return network


def classify_samples(model: ViT, data: TaskData, planned: PlannedEvaluation) -> EvalOutput:
    """Outcomes of *model*'s head on the test dataset.

    Raises InputError where the head's classes are not the dataset's: another number of them, or other names.
    """
    _require_same_classes(model, data, planned)
    transform = planned.model_ref.evaluation_transform
    with closing(DatasetReader(data.workspace, data.task.test)) as reader:
        predictions = predict(model, reader, transform, data.num_classes, is_many=data.is_many)
    outcomes = data.outcomes(predictions.keys, predictions.labels, predictions.probabilities, calibrated=True)
    return EvalOutput(outcomes, data.num_classes)


def _require_same_classes(model: ViT, data: TaskData, planned: PlannedEvaluation) -> None:
    evaluation, count = f"{planned.key.evaluator} on {planned.key.task}", model.config.num_classes
    if count != data.num_classes:
        raise InputError(f"{evaluation}: the network has {count} classes, not {data.num_classes}")
    names = warm_class_names(data.workspace, planned.model_ref)
    if settings_of(planned).classes == "order" or not names:
        return
    for label, (own, expected) in enumerate(zip(names, data.class_names, strict=True)):
        if own != expected:
            raise InputError(
                f"{evaluation}: class {label} of the network is {own!r}, of {data.task.test} {expected!r}",
                "judge it on its own classes; where only the names differ, with the setting classes: order",
            )
