"""The one training loop. Nothing that it draws needs stored state: a resumed step draws what it would have drawn.

Dropout and stochastic depth draw from torch's generator, seeded by (seed, step, rank): the same at the same world size,
so that training is equal at every world size with both off only. A loss that draws for each sample draws from (seed,
position in the global order), which is the same at every world size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipeline.base.seeds import derive
from pipeline.base.world import World
from pipeline.stream.mixup import mixed
from pipeline.train.device import normalise
from pipeline.train.lr_schedule import Schedule
from pipeline.train.metrics import MetricsLogger
from pipeline.train.recipe import ScheduleRecipe, accumulation
from pipeline.train.torch_engine import Engine


class TrainBatch(Protocol):
    """A rank's part of a global batch. It may have ``positions`` too, see Positioned."""

    @property
    def images(self) -> Tensor:
        """uint8 (B, 3, S, S)."""

    @property
    def labels(self) -> Tensor:
        """int64 (B,): one class each, -1 for none; or float32 (B, K): any number of classes each."""

    @property
    def coefficient(self) -> float:
        """The share of a sample's own where it is mixed with its partner."""

    @property
    def partners(self) -> Tensor | None:
        """int64 (B,): which sample of this batch each is mixed with (mixup). None: nothing is mixed."""


@runtime_checkable
class Positioned(Protocol):
    """A batch that knows the positions of its samples."""

    @property
    def positions(self) -> Sequence[int]:
        """(B,) in the global order of the run."""


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (network, input (B, 3, S, S), labels) -> mean loss, float32


@runtime_checkable
class DrawingLoss(Protocol):
    """A loss that draws at random for each sample. As a plain Loss it draws from torch's generator."""

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """See Loss."""

    def for_samples(self, seed: int, positions: Sequence[int]) -> Loss:
        """The loss of samples at *positions* (B,), with draws that *seed* and each position fix."""


Phase = Literal["wait", "forward", "update"]


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


def train(  # noqa: PLR0913 - what trains, on what, how long, and what is called meanwhile
    engine: Engine,
    batches: Iterator[TrainBatch],
    objective: Loss,
    plan: LoopPlan,
    world: World,
    metrics: MetricsLogger,
    at_step: Callable[[int], bool | None] = lambda _: None,
    *,
    timed: Callable[[Phase, float], None] = lambda *_: None,
) -> int:
    """Update *engine* until ``plan.num_steps`` updates are done, or *at_step* returns True; how many are done.

    *at_step* has to return the same on every rank. *timed* gets seconds of this rank in each step: ``wait``, for the
    batch; ``forward``, in the forward passes; ``update``, from the batch to the updated weights, forward included.
    """
    micro, _ = accumulation(plan.batch_size, world.size, plan.micro_batch_size)
    schedule = Schedule.of(plan.schedule, plan.peak, plan.num_steps, plan.batch_size)
    engine.module.train()
    for step in range(plan.first_step, plan.num_steps):
        started = time.monotonic()
        batch = next(batches)
        received = time.monotonic()
        metrics.waited(received - started)
        timed("wait", received - started)
        torch.manual_seed(derive(plan.seed, "step", step, world.rank))
        rate = schedule.rate(step * plan.batch_size)
        losses = _Losses(engine, objective, batch, plan.seed, micro)
        result = engine.update(losses.parts(), rate)
        timed("forward", losses.seconds)
        timed("update", time.monotonic() - received)
        metrics.step(step + 1, result, rate)
        if at_step(step + 1):
            return step + 1
    return plan.num_steps


@dataclass
class _Losses:
    """The losses of a batch, and the time that they took."""

    engine: Engine
    objective: Loss
    batch: TrainBatch
    seed: int
    micro: int
    seconds: float = field(default=0.0, init=False)

    def parts(self) -> Iterator[Callable[[], Tensor]]:
        """One callable for each micro-batch."""
        for start in range(0, len(self.batch.images), self.micro):
            yield partial(self._timed, slice(start, start + self.micro))

    def _timed(self, part: slice) -> Tensor:
        started = time.monotonic()
        loss = self._loss(part)
        self.seconds += time.monotonic() - started
        return loss

    def _loss(self, part: slice) -> Tensor:
        batch, objective = self.batch, self.objective
        if isinstance(objective, DrawingLoss) and isinstance(batch, Positioned):
            objective = objective.for_samples(self.seed, batch.positions[part])
        if batch.partners is None:
            images = normalise(batch.images[part], self.engine.dtype)
            return objective(self.engine.module, images, batch.labels[part])
        return self._mixed(objective, part, batch.partners[part])

    def _mixed(self, objective: Loss, part: slice, partners: Tensor) -> Tensor:
        """Samples *part*, each mixed in float32 with its partner, which may be of another micro-batch."""
        batch, share = self.batch, self.batch.coefficient
        own = normalise(batch.images[part], torch.float32)
        images = mixed(own, normalise(batch.images[partners], torch.float32), share).to(self.engine.dtype)
        labels, others = batch.labels[part], batch.labels[partners]
        if labels.is_floating_point():
            return objective(self.engine.module, images, share * labels + (1.0 - share) * others)
        network = SharedForward(self.engine.module)  # one class each: the losses are mixed, as soft targets would be
        loss = objective(network, images, labels)
        return share * loss + (1.0 - share) * objective(network, images, others)


class SharedForward(nn.Module):
    """*network* for two losses that need its output of the same input: one forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._output: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output of the first call."""
        if self._output is None:
            self._output = self._network(*inputs)
        return self._output
