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
from pipeline.train.recipe import ScheduleRecipe, accumulation
from pipeline.train.schedules import learning_rate
from pipeline.train.single import Engine
from pipeline.train.watch import Watch


class TrainBatch(Protocol):
    """A rank's part of a global batch: images uint8 (B, 3, S, S), labels (B,)."""

    @property
    def images(self) -> Tensor:
        """uint8 (B, 3, S, S)."""

    @property
    def labels(self) -> Tensor:
        """int64 (B,)."""


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
        losses = (
            partial(_loss, engine, objective, images, labels)
            for images, labels in zip(batch.images.split(micro), batch.labels.split(micro), strict=True)
        )
        result = engine.update(losses, rate)
        watch.step(step + 1, result, rate)
        at_step(step + 1)


def _loss(engine: Engine, objective: Objective, images: Tensor, labels: Tensor) -> Tensor:
    return objective(engine.module, normalise(images, engine.dtype), labels)
