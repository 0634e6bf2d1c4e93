"""Fine-tuning of all weights on a task (ViT Table 4), through the one training loop.

The learning rate is chosen on the validation part, then the network is trained again on all training samples. The
task's images are held in memory: this is for tasks of up to about 10^5 images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.seeds import generator
from pipeline.base.store import Store
from pipeline.base.world import World
from pipeline.evaluate.subject import PixelNetwork, Subject, load_network
from pipeline.evaluate.suite import FinetuneSettings
from pipeline.images.normalise import normalise
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.passes import each_once
from pipeline.train.loop import LoopPlan, train
from pipeline.train.recipe import OptimizerRecipe, ScheduleRecipe
from pipeline.train.single import SingleEngine
from pipeline.train.watch import Watch

_PREDICT_BATCH = 250


@dataclass(frozen=True)
class TaskImages:
    """images uint8 (N, 3, S, S), labels int64 (N,), keys (N)."""

    images: Tensor
    labels: Tensor
    keys: tuple[str, ...]

    def take(self, chosen: NDArray[np.bool_]) -> TaskImages:
        """The rows where *chosen* is true."""
        mask = torch.from_numpy(chosen)
        keys = tuple(key for key, wanted in zip(self.keys, chosen, strict=True) if wanted)
        return TaskImages(self.images[mask], self.labels[mask], keys)


def load_images(workspace: Store, subject: Subject, dataset: str) -> TaskImages:
    """All images of *dataset* under the subject's transform."""
    reader = DatasetReader(workspace, dataset)
    batches = list(each_once(reader, subject.evaluation_transform, _PREDICT_BATCH))
    reader.close()
    keys = tuple(key for batch in batches for key in batch.keys)
    return TaskImages(torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches]), keys)


def finetune(
    workspace: Store,
    subject: Subject,
    data: TaskImages,
    num_classes: int,
    settings: FinetuneSettings,
    rate: float,
    seed: int,
) -> nn.Module:
    """The subject's network with a new zero head, trained on *data* at peak learning rate *rate*."""
    network = _with_new_head(workspace, subject, num_classes)
    recipe = OptimizerRecipe(name="sgd", learning_rate=rate, weight_decay=0.0, clip=1.0)
    plan = LoopPlan(
        first_step=0,
        num_steps=settings.steps,
        seed=seed,
        peak=rate,
        schedule=ScheduleRecipe(decay="cosine", warmup_steps=settings.warmup_steps),
        batch_size=settings.batch_size,
    )
    watch = Watch(None, 1, settings.batch_size)
    train(SingleEngine(network, recipe), _batches(data, settings.batch_size, seed), _objective, plan, World(), watch)
    return network.eval()


def _with_new_head(workspace: Store, subject: Subject, num_classes: int) -> nn.Module:
    network = load_network(workspace, subject)
    if isinstance(network, PixelNetwork):
        return PixelNetwork(num_classes, subject.evaluation_transform.size)
    head = nn.Linear(network.config.width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    network.pre_logits = None  # ViT section 3.2: the whole pretraining head goes
    network.head = head
    return network


def _objective(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = module(images)
    return nn.functional.cross_entropy(logits.float(), labels)


@dataclass(frozen=True)
class _Batch:
    images: Tensor
    labels: Tensor
    coefficient: float = 1.0
    partners: Tensor | None = None  # ViT fine-tunes without mixup


def _batches(data: TaskImages, batch_size: int, seed: int) -> Iterator[_Batch]:
    """Endless, each epoch in its own order, joined without padding or drop."""
    pending = np.empty(0, dtype=np.int64)
    epoch = 0
    while True:
        while len(pending) < batch_size:
            order = generator(seed, "finetune", epoch).permutation(len(data.keys))
            pending, epoch = np.concatenate([pending, order]), epoch + 1
        rows, pending = torch.from_numpy(pending[:batch_size].copy()), pending[batch_size:]
        yield _Batch(data.images[rows], data.labels[rows])


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """uint8 (N, 3, S, S) -> class probabilities (N, K)."""
    parts = [network(normalise(chunk, torch.float32)).softmax(dim=1) for chunk in images.split(_PREDICT_BATCH)]
    probabilities: NDArray[np.float32] = torch.cat(parts).float().numpy()
    return probabilities
