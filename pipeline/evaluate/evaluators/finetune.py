"""The network that is tuned: the whole pretraining head replaced by one zero D x K layer, at any resolution."""

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
from pipeline.evaluate.finetuning.trainer import FinetuneCheckpoint, Predictions, finetune, predict, remove_kept
from pipeline.evaluate.metrics.classification import over_runs
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.model_loader import PixelNetwork, load_network
from pipeline.evaluate.model_ref import ModelRef, at_size
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import FinetuneSettings
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.stream.dataset import DatasetReader
from pipeline.train.device import compute_device


def at_tuning_size(subject: ModelRef, image_size: int) -> ModelRef:
    """*subject* at the *image_size* of the settings; raw pixels stay as they are: more would be but larger ones."""
    return subject if subject.is_pixels else at_size(subject, image_size)


def network_to_tune(workspace: Store, subject: ModelRef, num_classes: int) -> nn.Module:
    """The subject's network for the size of its transform (ViT section 3.2), with a zero head, where it computes."""
    network = load_network(workspace, subject)
    size = subject.evaluation_transform.size
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


def finetuned(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Outcomes are those of the first training; the metrics tell mean and deviation over all."""
    settings: FinetuneSettings = settings_of(planned)
    data = open_task(workspace, planned)
    tuning = _Tuning(data, at_tuning_size(planned.subject, settings.image_size), settings, planned.id)
    rate, shares = tuning.choose(planned.key.seed)
    seeds = [planned.key.seed, *(derive(planned.key.seed, "run", run) for run in range(1, settings.runs))]
    runs = [tuning.test(rate, seed) for seed in seeds]
    remove_kept(workspace, planned.id)
    first = runs[0]
    outcomes = data.outcomes(first.keys, first.labels, first.probabilities, calibrated=True)
    found = [data.share(run.labels, run.probabilities) for run in runs]
    chosen = {"learning_rate": rate, "validation_by_rate": {str(rate): share for rate, share in shares.items()}}
    return EvalOutput(outcomes, data.num_classes, chosen, metrics=over_runs("mAP" if data.is_many else "top1", found))


class _Tuning:
    """Trainings of one subject on one task."""

    def __init__(self, data: TaskData, subject: ModelRef, settings: FinetuneSettings, evaluation_id: str) -> None:
        self._data, self._subject, self._settings, self._id = data, subject, settings, evaluation_id
        self._masks = data.masks()
        self._samples = TuningSamples(
            data.workspace,
            data.task.train,
            subject,
            settings,
            data.num_classes,
            is_many=data.is_many,
            used=None if self._masks.used.all() else self._masks.used,
        )

    def choose(self, seed: int) -> tuple[float, dict[float, float]]:
        """The learning rate with the best share on the held-out part, and all shares; of equals the smaller rate.

        A rate at which training diverges has share -1. Raises FailedError when all do. A single rate is taken as it is.
        """
        rates = sorted(set(self._settings.learning_rates))
        if len(rates) == 1:
            return rates[0], {}
        shares = {rate: self._validated(rate, seed) for rate in rates}
        best = max(rates, key=lambda rate: shares[rate])
        if shares[best] < 0:
            raise FailedError(f"training diverged at every learning rate: {rates}", "name smaller ones")
        return best, shares

    def test(self, rate: float, seed: int) -> Predictions:
        """Of a network that was trained on all training samples of the task."""
        network = self._trained(self._masks.used, rate, seed)
        with closing(DatasetReader(self._data.workspace, self._data.task.test)) as reader:
            return self._predicted(network, reader)

    def _validated(self, rate: float, seed: int) -> float:
        try:
            network = self._trained(self._masks.fit, rate, seed)
        except DivergedError:
            return -1.0
        with closing(self._samples.reader(self._masks.held)) as reader:
            found = self._predicted(network, reader)
        return self._data.share(found.labels, found.probabilities)

    def _trained(self, keep: Mask, rate: float, seed: int) -> nn.Module:
        network = network_to_tune(self._data.workspace, self._subject, self._data.num_classes)
        kept = FinetuneCheckpoint(self._data.workspace, self._id, rate, seed, sha256_hex(np.packbits(keep).tobytes()))
        finetune(network, self._samples, keep, self._settings, rate, seed, kept)
        return network

    def _predicted(self, network: nn.Module, reader: DatasetReader) -> Predictions:
        transform = self._subject.evaluation_transform
        return predict(network, reader, transform, self._data.num_classes, is_many=self._data.is_many)
