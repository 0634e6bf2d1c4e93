"""What the benches of training share: the small network, batches in memory, and a training step without our code."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.models.config import ViTConfig, config_by_name
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.train.loop import LoopPlan, train
from pipeline.train.metrics import MetricsLogger
from pipeline.train.optimizer import make_optimizer
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe, ScheduleRecipe
from pipeline.train.torch_engine import Engine
from tests.bench.row import Row

CLASSES = 1000
SMALL: ViTConfig = config_by_name("Ti/4", image_size=32, num_classes=CLASSES)  # 5.5 M parameters, 65 tokens
OPTIMIZER = OptimizerRecipe(learning_rate=1e-4)
_SCHEDULE = ScheduleRecipe(decay="constant", warmup_steps=0)


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch, in memory."""

    images: Tensor
    labels: Tensor
    coefficient: float = 1.0
    partners: Tensor | None = None


def batches(count: int, config: ViTConfig = SMALL) -> Iterator[Batch]:
    """The same few random batches of *count* images, without end."""
    generator = torch.Generator().manual_seed(0)
    size = (count, 3, config.image_size, config.image_size)
    few = [
        Batch(
            torch.randint(0, 256, size, generator=generator, dtype=torch.uint8),
            torch.randint(0, CLASSES, (count,), generator=generator),
        )
        for _ in range(4)
    ]
    while True:
        yield from few


def cross_entropy(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """As the softmax objective without label smoothing."""
    return F.cross_entropy(module(images).float(), labels)


class Ours:
    """Our loop over *engine*."""

    def __init__(self, engine: Engine, world: World, batch_size: int) -> None:
        """*batch_size* is that of all ranks."""
        self._engine, self._world, self._batch_size = engine, world, batch_size
        self._source, self._step = batches(batch_size // world.size), 0
        self._watch = MetricsLogger(None, 10, batch_size)

    def __call__(self, num_steps: int) -> None:
        """So many more updates."""
        plan = LoopPlan(self._step, self._step + num_steps, 0, OPTIMIZER.learning_rate, _SCHEDULE, self._batch_size)
        train(self._engine, self._source, cross_entropy, plan, self._world, self._watch)
        self._step += num_steps


class Bare:
    """A loop as anybody writes it: uint8 to [-1, 1], forward, backward, clip, AdamW; in bf16 by autocast."""

    def __init__(self, batch_size: int, *, bf16: bool, wrap: Callable[[nn.Module], nn.Module] = lambda module: module):
        """*batch_size* is that of this rank; *wrap* as with DistributedDataParallel."""
        self._module, self._bf16 = wrap(ViT(SMALL)), bf16
        self._optimizer = make_optimizer(self._module, OPTIMIZER, has_weight_decay)
        self._source = batches(batch_size)

    def __call__(self, num_steps: int) -> None:
        """So many more updates."""
        for _ in range(num_steps):
            batch = next(self._source)
            self._optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                images = batch.images.to(torch.float32) / 127.5 - 1
                loss = F.cross_entropy(self._module(images).float(), batch.labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self._module.parameters(), OPTIMIZER.clip)
            self._optimizer.step()
            loss.item()


def engine_recipe(zero_stage: int, *, bf16: bool) -> EngineRecipe:
    """Of what a bench says."""
    return EngineRecipe.model_validate({"zero_stage": zero_stage, "precision": "bf16" if bf16 else "fp32"})


def seconds_of(call: Callable[[], object]) -> float:
    """How long *call* takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rates_row(what: str, ours: Sequence[float], peer: Sequence[float], least: float | None, unit: str) -> Row:
    """Of rates measured in turns: the median of the ratios of the rounds."""
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, peer, strict=True))
    mine, theirs = (f"{statistics.median(rates):,.0f} {unit}" for rates in (ours, peer))
    return Row(what, mine, theirs, ratio, least)
