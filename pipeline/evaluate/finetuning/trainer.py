"""One fine-tuning of all weights (ViT Table 4), through the one training loop; and predictions of a network.

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
from pipeline.checkpoints.shard_file import FragmentRange, RankState, header_length, pack_header, parse_header, piece_of
from pipeline.checkpoints.state import EMA
from pipeline.evaluate.finetuning.data import Mask, TuningSamples, each_image, joined_targets, labels_of
from pipeline.evaluate.recipe import FinetuneSettings
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.vit import has_weight_decay
from pipeline.stream.dataset import DatasetReader
from pipeline.train.device import normalise
from pipeline.train.loop import LoopPlan, train
from pipeline.train.metrics import MetricsLogger
from pipeline.train.recipe import OptimizerRecipe, ScheduleRecipe
from pipeline.train.torch_engine import TorchEngine

KEEP_SECONDS = 300.0  # between two files; a shorter training leaves none


class FinetuneCheckpoint:
    """What is kept of one training of an evaluation; *of*: all that fixes it beside the evaluation."""

    def __init__(self, workspace: Store, evaluation_id: str, *of: str | float) -> None:
        self._workspace = workspace
        self._key = f"{_prefix(evaluation_id)}{fingerprint(list(of))[:16]}.safetensors"
        self._last = time.monotonic()
        self._has_kept = False

    def resume(self, engine: TorchEngine) -> int:
        """Set *engine* to what is kept, and return how many steps are done; 0 for nothing, or nothing whole."""
        try:
            kept = _Kept(self._workspace.read(self._key), self._key)
        except (FileNotFoundError, DamageError):
            return 0
        engine.load(kept)
        self._has_kept = True
        return kept.state.step

    def at_step(self, engine: TorchEngine, step: int, num_steps: int) -> None:
        """Keep what *engine* has, if it is time to, or if it is the end of what was kept before."""
        is_over = time.monotonic() - self._last >= KEEP_SECONDS
        if is_over or (step == num_steps and self._has_kept):
            self._workspace.put(self._key, _packed(engine, self._key, step))
            self._last, self._has_kept = time.monotonic(), True


def remove_kept(workspace: Store, evaluation_id: str) -> None:
    """Remove what trainings of the evaluation left."""
    for info in list(workspace.list(_prefix(evaluation_id))):
        workspace.delete(info.key)


def _prefix(evaluation_id: str) -> str:
    return f"evaluations/{evaluation_id}/tuning-"


def _packed(engine: TorchEngine, where: str, step: int) -> bytes:
    fragments = engine.fragments()
    body = b"".join(fragment.values.detach().cpu().contiguous().numpy().tobytes() for fragment in fragments)
    state = RankState(
        run=where,
        step=step,
        attempt=sha256_hex(body),
        rank=0,
        world_size=1,
        updates=engine.updates,
        shapes=engine.shapes(),
    )
    return pack_header(state, [piece_of(fragment) for fragment in fragments]) + body


class _Kept:
    """The fragments of such a file. Raises DamageError unless it is whole, and the one that is meant."""

    def __init__(self, data: bytes, where: str) -> None:
        header = parse_header(data, len(data), where)
        self.state, self._offsets, self._data = header.state, header.offsets, bytearray(data)
        body = memoryview(data)[header_length(data, len(data), where) :]
        if self.state.run != where or self.state.attempt != sha256_hex(body):
            raise DamageError(f"{where}: its bytes are not those that were kept")

    @property
    def updates(self) -> int:
        """See FragmentReader."""
        return self.state.updates

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See FragmentReader."""
        return self.state.shapes

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See FragmentReader. One process kept it, so a piece is asked for as it was given."""
        offset = self._offsets[FragmentRange(kind, name, start, stop)]
        return torch.frombuffer(self._data, dtype=torch.float32, count=stop - start, offset=offset)


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
    keep: FinetuneCheckpoint | None = None,
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
    engine = TorchEngine(network, recipe, has_weight_decay, autocast=settings.precision == "bf16")
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
        train(engine, batches, tuning_loss, plan, World(), MetricsLogger(None, 1, settings.batch_size), at_step)
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
def take_average(engine: TorchEngine) -> None:
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
