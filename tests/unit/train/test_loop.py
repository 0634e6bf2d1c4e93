"""The loop: it learns, asks the schedule, calls back after every update, and its draws hang on (seed, step, rank)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.train.loop import LoopPlan, train
from pipeline.train.recipe import OptimizerRecipe, ScheduleRecipe
from pipeline.train.single import SingleEngine, StepResult
from pipeline.train.watch import Watch


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor


class Toy(nn.Module):
    """One layer over the mean colour; keeps the masks that dropout drew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 2)."""
        self.masks.append(self.dropout(torch.ones(64)))
        return self.head(x.mean(dim=(2, 3)))


class Recorder:
    """An engine that only runs the forward passes, and notes the rates and micro-batches."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.module = Toy()
        self.rates: list[float] = []
        self.parts: list[int] = []

    def update(self, losses: Iterator[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """See Engine."""
        self.rates.append(learning_rate)
        values = [loss() for loss in losses]
        self.parts.append(len(values))
        return StepResult(1.0, 1.0)


def batches(first: int = 0, count: int = 8) -> Iterator[Batch]:
    """Dark images are class 0, bright ones class 1."""
    step = first
    while True:
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 2, (count,), generator=generator)
        noise = torch.randint(0, 100, (count, 3, 4, 4), generator=generator)
        yield Batch((noise + 120 * labels[:, None, None, None]).to(torch.uint8), labels)
        step += 1


def objective(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(module(images), labels)


def plan(**changes: object) -> LoopPlan:
    """Six steps of eight samples."""
    values = {"first_step": 0, "num_steps": 6, "seed": 3, "peak": 0.1, "schedule": ScheduleRecipe(warmup_steps=2)}
    return LoopPlan(**({"batch_size": 8} | values | changes))  # type: ignore[arg-type]


def masks(world: World = World(), **changes: object) -> list[Tensor]:  # noqa: B008 - a World is frozen
    """What dropout drew, one mask per forward pass."""
    engine = Recorder()
    asked = plan(batch_size=8 * world.size, **changes)
    train(engine, batches(asked.first_step), objective, asked, world, Watch(None, 1, 8))
    return engine.module.masks


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """True when all masks are equal."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_loss_falls() -> None:
    losses = []

    class Noting(SingleEngine):
        def update(self, *arguments: object) -> StepResult:
            result = super().update(*arguments)  # type: ignore[arg-type]
            losses.append(result.loss)
            return result

    engine = Noting(Toy(), OptimizerRecipe(weight_decay=0.0))
    train(engine, batches(), objective, plan(num_steps=60), World(), Watch(None, 1, 8))
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_rates_follow_the_schedule_and_every_update_is_told() -> None:
    engine, told = Recorder(), []
    schedule = ScheduleRecipe(decay="linear", warmup_steps=2)
    train(engine, batches(), objective, plan(schedule=schedule), World(), Watch(None, 1, 8), told.append)
    assert engine.rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_resumed_loop_does_only_what_is_left() -> None:
    engine, told = Recorder(), []
    train(engine, batches(), objective, plan(first_step=4), World(), Watch(None, 1, 8), told.append)
    assert told == [5, 6]
    assert engine.rates == pytest.approx(rates_of_all_steps()[4:])


def rates_of_all_steps() -> list[float]:
    """The rates of an undisturbed loop."""
    engine = Recorder()
    train(engine, batches(), objective, plan(), World(), Watch(None, 1, 8))
    return engine.rates


def test_a_batch_is_cut_into_micro_batches() -> None:
    engine = Recorder()
    train(engine, batches(), objective, plan(micro_batch_size=2), World(), Watch(None, 1, 8))
    assert engine.parts == [4] * 6


def test_draws_hang_on_seed_step_and_rank_only() -> None:
    first = World(rank=0, size=2, local_rank=0, local_size=2)
    second = World(rank=1, size=2, local_rank=1, local_size=2)
    whole = masks(first)
    torch.manual_seed(12345)
    torch.rand(99)
    assert same(masks(first), whole), "the generator's state before the loop plays no part"
    assert same(masks(first, first_step=4), whole[4:]), "a resumed step draws what it would have drawn"
    assert same(masks(World(rank=0, size=4)), whole), "the same rank of a larger world draws the same"
    assert not any(torch.equal(a, b) for a, b in zip(whole, masks(second), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole, masks(first, seed=4), strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(whole))


def test_the_network_trains_in_training_mode() -> None:
    engine = Recorder()
    engine.module.eval()
    train(
        engine,
        batches(),
        objective,
        plan(num_steps=1, schedule=ScheduleRecipe(warmup_steps=0)),
        World(),
        Watch(None, 1, 8),
    )
    assert set(engine.module.masks[0].tolist()) == {0.0, 2.0}
