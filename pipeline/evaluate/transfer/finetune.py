"""One fine-tuning of all weights (ViT Table 4), through the one training loop; and predictions of a network.

Shapes: N samples, B images, K classes.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.checkpoints.fragments import EMA
from pipeline.evaluate.suite import FinetuneSettings
from pipeline.evaluate.transfer.keep import Keep
from pipeline.evaluate.transfer.samples import Mask, TuningSamples, each_image, joined_targets, labels_of
from pipeline.images.normalise import normalise
from pipeline.images.transform import EvaluationTransform
from pipeline.models.vit import decayed
from pipeline.stream.dataset import DatasetReader
from pipeline.train.loop import LoopPlan, train
from pipeline.train.recipe import OptimizerRecipe, ScheduleRecipe
from pipeline.train.single import SingleEngine
from pipeline.train.watch import Watch


@dataclass(frozen=True)
class Predictions:
    """keys (N), labels (N,) or (N, K) of 0 and 1, probabilities (N, K)."""

    keys: tuple[str, ...]
    labels: NDArray[Any]
    probabilities: NDArray[np.float32]


def finetune(
    network: nn.Module,
    samples: TuningSamples,
    of: Mask,
    settings: FinetuneSettings,
    rate: float,
    seed: int,
    keep: Keep | None = None,
) -> None:
    """Train *network* on *samples*, those where *of* is true, at peak learning rate *rate*; it evaluates then.

    *keep*: where it stands is stored from time to time, and what is there is gone on with. With a moving average its
    weights are those of the average. Raises DivergedError when the loss is not finite.
    """
    recipe = OptimizerRecipe(
        name=settings.optimizer,
        learning_rate=rate,
        weight_decay=settings.weight_decay,
        clip=1.0,
        layer_decay=settings.layer_decay,
        ema=settings.ema,
    )
    engine = SingleEngine(network, recipe, decayed, autocast=settings.precision == "bf16")
    first_step = keep.resume(engine) if keep else 0
    plan = LoopPlan(
        first_step=first_step,
        num_steps=settings.steps,
        seed=seed,
        peak=rate,
        schedule=ScheduleRecipe(decay="cosine", warmup_steps=settings.warmup_steps),
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
    )

    def at_step(step: int) -> None:
        if keep:
            keep.at_step(engine, step, settings.steps)

    with samples.batches(of, seed, first_step) as batches:
        train(engine, batches, tuning_loss, plan, World(), Watch(None, 1, settings.batch_size), at_step)
    if settings.ema:
        take_average(engine)
    network.eval()


def tuning_loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; where samples have several labels the sum of the sigmoid cross-entropies of all classes."""
    logits = module(images).float()
    if not labels.is_floating_point():
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)


@torch.no_grad()
def take_average(engine: SingleEngine) -> None:
    """Set the network's weights to their moving average."""
    for fragment in engine.fragments():
        if fragment.kind == EMA:
            weight = engine.module.get_parameter(fragment.name).reshape(-1)
            weight[fragment.start : fragment.start + fragment.values.numel()] = fragment.values


@torch.inference_mode()
def predict(
    network: nn.Module, reader: DatasetReader, transform: EvaluationTransform, num_classes: int, *, is_many: bool
) -> Predictions:
    """Class probabilities of every sample of *reader*, in order; where samples have several labels, of each alone."""
    device = next(network.parameters()).device
    keys: list[str] = []
    labels, found = [], []
    with closing(each_image(reader, transform)) as batches:
        for batch in batches:
            logits = network(normalise(batch.images.to(device), torch.float32)).float()
            found.append((logits.sigmoid() if is_many else logits.softmax(dim=1)).cpu())
            labels.append(labels_of(batch, num_classes, is_many=is_many))
            keys += batch.keys
    return Predictions(tuple(keys), joined_targets(labels), torch.cat(found).numpy())
