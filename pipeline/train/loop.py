"""The one training loop. Random draws of a step (dropout) depend on (seed, step, rank) alone.

So no generator state has to be stored: a resumed step draws what it would have drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.base.seeds import derive
from pipeline.base.world import World
from pipeline.images.normalise import normalise
from pipeline.stream.mixup import mixed
from pipeline.train.recipe import ScheduleRecipe, accumulation
from pipeline.train.schedules import learning_rate
from pipeline.train.single import Engine
from pipeline.train.watch import Watch


class TrainBatch(Protocol):
    """A rank's part of a global batch."""

    @property
    def images(self) -> Tensor:
        """uint8 (B, 3, S, S)."""

    @property
    def labels(self) -> Tensor:
        """int64 (B,)."""

    @property
    def coefficient(self) -> float:
        """The share of a sample's own where it is mixed with its partner."""

    @property
    def partners(self) -> Tensor | None:
        """int64 (B,): which sample of this batch each is mixed with (mixup). None: nothing is mixed."""


Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (network, input (B, 3, S, S), labels) -> mean loss


@dataclass(frozen=True)
class LoopPlan:
    """From *first_step* to *num_steps*, with a call of *at_step* after each update."""

    first_step: int
    num_steps: int
    seed: int
    peak: float
    schedule: ScheduleRecipe
    batch_size: int
    micro_batch_size: int = 0


def train(
    engine: Engine,
    batches: Iterator[TrainBatch],
    objective: Objective,
    plan: LoopPlan,
    world: World,
    watch: Watch,
    at_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Update *engine* until ``plan.num_steps`` updates are done."""
    micro, _ = accumulation(plan.batch_size, world.size, plan.micro_batch_size)
    engine.module.train()
    for step in range(plan.first_step, plan.num_steps):
        asked = time.monotonic()
        batch = next(batches)
        watch.waited(time.monotonic() - asked)
        torch.manual_seed(derive(plan.seed, "step", step, world.rank))
        rate = learning_rate(step, plan.num_steps, plan.peak, plan.schedule)
        result = engine.update(_losses(engine, objective, batch, micro), rate)
        watch.step(step + 1, result, rate)
        at_step(step + 1)


def _losses(engine: Engine, objective: Objective, batch: TrainBatch, micro: int) -> Iterator[Callable[[], Tensor]]:
    """One callable for each micro-batch of *micro* samples."""
    for start in range(0, len(batch.images), micro):
        part = slice(start, start + micro)
        if batch.partners is None:
            yield partial(_loss, engine, objective, batch.images[part], batch.labels[part])
        else:
            yield partial(_mixed_loss, engine, objective, batch, part, batch.partners[part])


def _loss(engine: Engine, objective: Objective, images: Tensor, labels: Tensor) -> Tensor:
    return objective(engine.module, normalise(images, engine.dtype), labels)


def _mixed_loss(engine: Engine, objective: Objective, batch: TrainBatch, part: slice, partners: Tensor) -> Tensor:
    """Samples *part* of *batch*, each mixed in float32 with its partner, which may be of another micro-batch."""
    own = normalise(batch.images[part], torch.float32)
    images = mixed(own, normalise(batch.images[partners], torch.float32), batch.coefficient).to(engine.dtype)
    network = _Once(engine.module)
    loss = objective(network, images, batch.labels[part])
    other = objective(network, images, batch.labels[partners])
    return batch.coefficient * loss + (1.0 - batch.coefficient) * other


class _Once(nn.Module):
    """Stands for *network* where two losses ask for its output of the same input: one forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._output: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> what the network gave the first time."""
        if self._output is None:
            self._output = self._network(images)
        return self._output
