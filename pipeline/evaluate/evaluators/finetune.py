"""Fine-tuning of all weights (ViT, arXiv 2010.11929, Table 4): a learning rate is chosen on the validation part, then
the network is trained several times on all training samples.

The pretraining head is replaced by one zero D x K layer; positions are resampled for another resolution.

Shapes: N samples, D width, K classes.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
from pydantic import ValidationError
from torch import nn

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DivergedError, FailedError, InputError
from pipeline.base.seeds import derive
from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import settings_of
from pipeline.evaluate.finetuning.data import Mask, TuningSamples
from pipeline.evaluate.finetuning.trainer import (
    FinetuneCheckpoint,
    Predictions,
    finetune,
    predict,
    remove_checkpoints,
)
from pipeline.evaluate.metrics.classification import over_runs
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.model_loader import PixelNetwork, load_network
from pipeline.evaluate.model_ref import ModelRef, at_size
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import FinetuneSettings
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.stream.dataset import DatasetReader
from pipeline.train.device import compute_device

_DIVERGED_SHARE = -1.0  # of a learning rate at which training diverges: below every share


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Outcomes are those of the first training; the metrics are mean and deviation over all trainings."""
    settings: FinetuneSettings = settings_of(planned)
    data = open_task(workspace, planned)
    tuning = _Tuning(data, at_tuning_size(planned.model_ref, settings.image_size), settings, planned.id)
    rate, shares = tuning.choose(planned.key.seed)
    seeds = [planned.key.seed, *(derive(planned.key.seed, "run", number) for number in range(1, settings.runs))]
    runs = [tuning.test(rate, seed) for seed in seeds]
    remove_checkpoints(workspace, planned.id)
    first = runs[0]
    outcomes = data.outcomes(first.keys, first.labels, first.probabilities, calibrated=True)
    metrics = over_runs("mAP" if data.is_many else "top1", [data.share(run.labels, run.probabilities) for run in runs])
    chosen = {"learning_rate": rate, "validation_by_rate": {str(rate): share for rate, share in shares.items()}}
    return EvalOutput(outcomes, data.num_classes, chosen, metrics=metrics)


def at_tuning_size(model_ref: ModelRef, image_size: int) -> ModelRef:
    """*model_ref* at the *image_size* of the settings; raw pixels stay as they are: more would be but larger ones."""
    return model_ref if model_ref.is_pixels else at_size(model_ref, image_size)


def network_to_tune(workspace: Store, model_ref: ModelRef, num_classes: int) -> nn.Module:
    """The model's network for the size of its transform (ViT section 3.2) with a zero head, on the compute device.

    Raises InputError for a size that the network's patches do not divide.
    """
    network = load_network(workspace, model_ref)
    size = model_ref.evaluation_transform.size
    if isinstance(network, PixelNetwork):
        return PixelNetwork(num_classes, size).to(compute_device())
    if network.config.image_size != size:
        try:
            network = network.at_resolution(size)
        except ValidationError:
            patch = network.config.patch_size
            raise InputError(f"image_size {size} is no multiple of the network's patches of {patch} pixels") from None
    head = nn.Linear(network.config.width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    network.pre_logits = None
    network.head = head
    return network.to(compute_device())


class _Tuning:
    """Trainings of one model on one task."""

    def __init__(self, data: TaskData, model_ref: ModelRef, settings: FinetuneSettings, evaluation_id: str) -> None:
        self._data, self._subject, self._settings, self._id = data, model_ref, settings, evaluation_id
        self._masks = data.masks()
        self._samples = TuningSamples(
            data.workspace,
            data.task.train,
            model_ref,
            settings,
            data.num_classes,
            is_many=data.is_many,
            used=None if self._masks.used.all() else self._masks.used,
        )

    def choose(self, seed: int) -> tuple[float, dict[float, float]]:
        """The learning rate with the best share on the validation part, and all shares; of equals the smaller rate.

        A rate at which training diverges has share -1. Raises FailedError when all do. A single rate is not tried.
        """
        rates = sorted(set(self._settings.learning_rates))
        if len(rates) == 1:
            return rates[0], {}
        shares = {rate: self._validation_share(rate, seed) for rate in rates}
        best = max(rates, key=lambda rate: shares[rate])
        if shares[best] < 0:
            raise FailedError(f"training diverged at every learning rate: {rates}", "name smaller ones")
        return best, shares

    def test(self, rate: float, seed: int) -> Predictions:
        """Predictions of a network that was trained on all training samples of the task."""
        network = self._trained(self._masks.used, rate, seed)
        with closing(DatasetReader(self._data.workspace, self._data.task.test)) as reader:
            return self._predict(network, reader)

    def _validation_share(self, rate: float, seed: int) -> float:
        try:
            network = self._trained(self._masks.fit, rate, seed)
        except DivergedError:
            return _DIVERGED_SHARE
        with closing(self._samples.reader(self._masks.held_out)) as reader:
            predictions = self._predict(network, reader)
        return self._data.share(predictions.labels, predictions.probabilities)

    def _trained(self, mask: Mask, rate: float, seed: int) -> nn.Module:
        network = network_to_tune(self._data.workspace, self._subject, self._data.num_classes)
        mask_digest = sha256_hex(np.packbits(mask).tobytes())
        checkpoint = FinetuneCheckpoint(self._data.workspace, self._id, rate, seed, mask_digest)
        finetune(network, self._samples, mask, self._settings, rate, seed, checkpoint)
        return network

    def _predict(self, network: nn.Module, reader: DatasetReader) -> Predictions:
        transform = self._subject.evaluation_transform
        return predict(network, reader, transform, self._data.num_classes, is_many=self._data.is_many)
