"""One fine-tuning of all weights (ViT, arXiv 2010.11929, Table 4), through the training loop of pretraining;
checkpoints of a long one, from which a killed one resumes; predictions of a network.

::

    evaluations/<id>/tuning-<fingerprint>.safetensors   the state of one training, removed when all are done

Shapes: N samples, B images, K classes.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store.protocol import Store
from pipeline.base.world import World
from pipeline.checkpoints.shard_file import (
    FragmentRange,
    RankState,
    fragment_range,
    header_length,
    pack_header,
    parse_header,
)
from pipeline.checkpoints.state import EMA
from pipeline.evaluate.finetuning.data import Mask, TuningSamples, concatenate_labels, iterate_images, labels_of
from pipeline.evaluate.recipe import FinetuneSettings
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.vit import has_weight_decay
from pipeline.stream.dataset import DatasetReader
from pipeline.train.device import normalise
from pipeline.train.loop import LoopPlan, train
from pipeline.train.metrics import MetricsLogger
from pipeline.train.recipe import OptimizerRecipe, ScheduleRecipe
from pipeline.train.torch_engine import TorchEngine

CHECKPOINT_SECONDS = 300.0  # between two checkpoints; a shorter training writes none


def finetune(
    network: nn.Module,
    samples: TuningSamples,
    mask: Mask,
    settings: FinetuneSettings,
    rate: float,
    seed: int,
    checkpoint: FinetuneCheckpoint | None = None,
) -> None:
    """Train *network* on the *samples* of *mask* at peak learning rate *rate*, and leave it in evaluation mode.

    *checkpoint*: the training resumes from it, and writes it from time to time. With a moving average the final
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
    engine = TorchEngine(network, recipe, has_weight_decay, autocast=settings.precision == "bf16")
    first_step = checkpoint.resume(engine) if checkpoint else 0
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
        if checkpoint:
            checkpoint.at_step(engine, step, settings.steps)

    with samples.batches(mask, seed, first_step) as batches:
        train(engine, batches, _loss, plan, World(), MetricsLogger(None, 1, settings.batch_size), at_step)
    if settings.ema:
        _load_average(engine)
    network.eval()


def _loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; where samples have several labels the sum of the sigmoid cross-entropies of all classes."""
    logits = module(images).float()
    if not labels.is_floating_point():
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)


@torch.no_grad()
def _load_average(engine: TorchEngine) -> None:
    """Set the network's weights to their moving average."""
    for fragment in engine.fragments():
        if fragment.kind == EMA:
            weight = engine.module.get_parameter(fragment.name).reshape(-1)
            weight[fragment.start : fragment.start + fragment.values.numel()] = fragment.values


@dataclass(frozen=True)
class Predictions:
    """keys (N), labels (N,) or (N, K) of 0 and 1, probabilities (N, K)."""

    keys: tuple[str, ...]
    labels: NDArray[Any]
    probabilities: NDArray[np.float32]


@torch.inference_mode()
def predict(
    network: nn.Module, reader: DatasetReader, transform: EvaluationTransform, num_classes: int, *, is_many: bool
) -> Predictions:
    """Class probabilities of every sample of *reader*, in order; where samples have several labels, of each alone."""
    device = next(network.parameters()).device
    keys: list[str] = []
    labels, probabilities = [], []
    with closing(iterate_images(reader, transform)) as batches:
        for batch in batches:
            logits = network(normalise(batch.images.to(device), torch.float32)).float()
            probabilities.append((logits.sigmoid() if is_many else logits.softmax(dim=1)).cpu())
            labels.append(labels_of(batch, num_classes, is_many=is_many))
            keys += batch.keys
    return Predictions(tuple(keys), concatenate_labels(labels), torch.cat(probabilities).numpy())


class FinetuneCheckpoint:
    """The stored state of one training of an evaluation; *identity*: the values in which its trainings differ.

    A resumed training gives the same weights bit for bit, because it draws nothing that seed and step do not fix.
    """

    def __init__(self, workspace: Store, evaluation_id: str, *identity: str | float) -> None:
        self._workspace = workspace
        self._key = f"{_prefix(evaluation_id)}{fingerprint(list(identity))[:16]}.safetensors"
        self._last = time.monotonic()
        self._is_stored = False

    def resume(self, engine: TorchEngine) -> int:
        """Load the stored state into *engine* and return its step; 0 where there is none, or a damaged one."""
        try:
            stored = _StoredState(self._workspace.read(self._key), self._key)
        except (FileNotFoundError, DamageError):
            return 0
        engine.load(stored)
        self._is_stored = True
        return stored.state.step

    def at_step(self, engine: TorchEngine, step: int, num_steps: int) -> None:
        """Store the state of *engine* every CHECKPOINT_SECONDS, and at the end of a training that has stored before."""
        is_due = time.monotonic() - self._last >= CHECKPOINT_SECONDS
        if is_due or (step == num_steps and self._is_stored):
            self._workspace.put(self._key, _pack_state(engine, self._key, step))
            self._last, self._is_stored = time.monotonic(), True


def remove_checkpoints(workspace: Store, evaluation_id: str) -> None:
    """Remove the checkpoints of all trainings of the evaluation."""
    for info in list(workspace.list(_prefix(evaluation_id))):
        workspace.delete(info.key)


def _prefix(evaluation_id: str) -> str:
    return f"evaluations/{evaluation_id}/tuning-"


def _pack_state(engine: TorchEngine, key: str, step: int) -> bytes:
    fragments = engine.fragments()
    body = b"".join(fragment.values.detach().cpu().contiguous().numpy().tobytes() for fragment in fragments)
    state = RankState(
        run=key,
        step=step,
        attempt=sha256_hex(body),
        rank=0,
        world_size=1,
        updates=engine.updates,
        shapes=engine.shapes(),
    )
    return pack_header(state, [fragment_range(fragment) for fragment in fragments]) + body


class _StoredState:
    """A FragmentReader of a checkpoint. Raises DamageError for a damaged one, and for that of another training."""

    def __init__(self, data: bytes, key: str) -> None:
        header = parse_header(data, len(data), key)
        self.state, self._offsets, self._data = header.state, header.offsets, bytearray(data)
        body = memoryview(data)[header_length(data, len(data), key) :]
        if self.state.run != key or self.state.attempt != sha256_hex(body):
            raise DamageError(f"{key}: its bytes are not those that were kept")

    @property
    def updates(self) -> int:
        """See FragmentReader."""
        return self.state.updates

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See FragmentReader."""
        return self.state.shapes

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See FragmentReader. One process stored the state, so a piece is read as it was written."""
        offset = self._offsets[FragmentRange(kind, name, start, stop)]
        return torch.frombuffer(self._data, dtype=torch.float32, count=stop - start, offset=offset)
