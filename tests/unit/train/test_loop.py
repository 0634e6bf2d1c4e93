"""The loop: it learns, asks the schedule, calls back after every update and stops on request; its draws; mixup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.stream.mixup import partners
from pipeline.train.loop import LoopPlan, train
from pipeline.train.metrics import MetricsLogger
from pipeline.train.recipe import OptimizerRecipe, ScheduleRecipe
from pipeline.train.torch_engine import Engine, StepResult, TorchEngine


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor
    coefficient: float = 1.0
    partners: Tensor | None = None


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
    train(engine, batches(asked.first_step), objective, asked, world, MetricsLogger(None, 1, 8))
    return engine.module.masks


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """True when all masks are equal."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_loss_falls() -> None:
    losses = []

    class Noting(TorchEngine):
        def update(self, *arguments: object) -> StepResult:
            result = super().update(*arguments)  # type: ignore[arg-type]
            losses.append(result.loss)
            return result

    engine = Noting(Toy(), OptimizerRecipe(weight_decay=0.0))
    train(engine, batches(), objective, plan(num_steps=60), World(), MetricsLogger(None, 1, 8))
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_rates_follow_the_schedule_and_every_update_is_told() -> None:
    engine, told = Recorder(), []
    schedule = ScheduleRecipe(decay="linear", warmup_steps=2)
    train(engine, batches(), objective, plan(schedule=schedule), World(), MetricsLogger(None, 1, 8), told.append)
    assert engine.rates == pytest.approx([0.0, 0.05, 0.1, 0.075, 0.05, 0.025])
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_resumed_loop_does_only_what_is_left() -> None:
    engine, told = Recorder(), []
    train(engine, batches(), objective, plan(first_step=4), World(), MetricsLogger(None, 1, 8), told.append)
    assert told == [5, 6]
    assert engine.rates == pytest.approx(rates_of_all_steps()[4:])


def rates_of_all_steps() -> list[float]:
    """The rates of an undisturbed loop."""
    engine = Recorder()
    train(engine, batches(), objective, plan(), World(), MetricsLogger(None, 1, 8))
    return engine.rates


def test_a_batch_is_cut_into_micro_batches() -> None:
    engine = Recorder()
    train(engine, batches(), objective, plan(micro_batch_size=2), World(), MetricsLogger(None, 1, 8))
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
        MetricsLogger(None, 1, 8),
    )
    assert set(engine.module.masks[0].tolist()) == {0.0, 2.0}


class Small(nn.Module):
    """A network whose gradient hangs on every pixel; counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 5))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 4, 4) -> (B, 5)."""
        self.passes += 1
        return self.layers(x)


class Gradients:
    """An engine that keeps the mean loss and its gradient, and updates nothing."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.module = Small().to(dtype)
        self.loss = 0.0
        self.inputs: list[Tensor] = []
        self.module.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0]))

    def update(self, losses: Iterator[Callable[[], Tensor]], _: float) -> StepResult:
        """See Engine."""
        values = [loss() for loss in losses]
        mean = torch.stack(values).mean()
        mean.backward()
        self.loss = mean.item()
        return StepResult(self.loss, 1.0)

    def gradient(self) -> Tensor:
        """All of it, flat."""
        return torch.cat([parameter.grad.flatten() for parameter in self.module.parameters()])


def one_step(engine: Engine, batch: Batch, **changes: object) -> None:
    """Six samples in three slots, as two rows."""
    train(
        engine, iter([batch]), objective, plan(num_steps=1, batch_size=6, **changes), World(), MetricsLogger(None, 1, 6)
    )


def six(coefficient: float = 1.0, of_each: Tensor | None = None) -> Batch:
    """A batch of random pixels and five classes."""
    draw = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (6, 3, 4, 4), generator=draw).to(torch.uint8)
    return Batch(images, torch.tensor([0, 1, 2, 3, 4, 0]), coefficient, of_each)


@pytest.mark.parametrize("micro", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("slots", [1, 3])
def test_mixup_is_training_on_soft_targets(micro: int, slots: int) -> None:
    """Partners of a micro-batch may be of another one; the labels' losses are mixed as the targets would be."""
    of_each = torch.from_numpy(partners(6 // slots, slots))
    batch = six(0.7, of_each)
    engine = Gradients()
    one_step(engine, batch, micro_batch_size=micro)
    dense, pixels = Small().double(), batch.images.double() / 127.5 - 1
    targets = nn.functional.one_hot(batch.labels, 5).double()
    logits = dense(0.7 * pixels + 0.3 * pixels[of_each])
    wanted = nn.functional.cross_entropy(logits, 0.7 * targets + 0.3 * targets[of_each])
    wanted.backward()
    assert engine.loss == pytest.approx(wanted.item(), rel=1e-6)
    reference = torch.cat([parameter.grad.flatten() for parameter in dense.parameters()])
    torch.testing.assert_close(engine.gradient().double(), reference, rtol=1e-4, atol=1e-7)
    assert engine.module.passes == 6 // (micro or 6), "one forward pass for both labels"


def test_mixing_is_in_float32_and_rounded_once() -> None:
    engine = Gradients(torch.bfloat16)
    batch = six(0.7, torch.from_numpy(partners(2, 3)))
    one_step(engine, batch)
    pixels = batch.images.double() / 127.5 - 1
    wanted = (0.7 * pixels + 0.3 * pixels[batch.partners]).float()
    (given,) = engine.inputs
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.float(), wanted, rtol=2**-8, atol=1e-6)


def test_the_batch_itself_is_not_mixed() -> None:
    batch = six(0.7, torch.from_numpy(partners(2, 3)))
    before = batch.images.clone()
    one_step(Gradients(), batch, micro_batch_size=2)
    assert torch.equal(batch.images, before)


@pytest.mark.parametrize("micro", [0, 2])
def test_without_partners_not_a_bit_changes(micro: int) -> None:
    """Whatever the coefficient says: the loss and the gradient are those of the loop without mixup."""
    engine, plain = Gradients(), Small()
    one_step(engine, six(0.7, None), micro_batch_size=micro)
    batch = six()
    parts = zip(batch.images.split(micro or 6), batch.labels.split(micro or 6), strict=True)
    loss = torch.stack([objective(plain, images / 127.5 - 1, labels) for images, labels in parts]).mean()
    loss.backward()
    assert engine.loss == loss.item()
    assert torch.equal(engine.gradient(), torch.cat([parameter.grad.flatten() for parameter in plain.parameters()]))


def test_a_network_that_is_asked_in_mixed_precision_is_asked_so_with_mixup_too() -> None:
    seen = []

    def mixed_precision(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(images)
        seen.append(logits.dtype)
        return nn.functional.cross_entropy(logits.float(), labels)

    batch = six(0.7, torch.from_numpy(partners(2, 3)))
    train(
        Gradients(), iter([batch]), mixed_precision, plan(num_steps=1, batch_size=6), World(), MetricsLogger(None, 1, 6)
    )
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("micro", [0, 2])
def test_many_labels_are_mixed_as_targets(micro: int) -> None:
    """Of each class a sample has its own share and its partner's: one loss, one forward pass."""
    seen: list[Tensor] = []

    def sigmoid(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return nn.functional.binary_cross_entropy_with_logits(module(images), labels)

    labels = torch.eye(6, 5) + torch.eye(6, 5).roll(2, dims=1)
    of_each = torch.from_numpy(partners(2, 3))
    batch = Batch(six().images, labels, 0.7, of_each)
    engine = Gradients()
    train(engine, iter([batch]), sigmoid, plan(num_steps=1, batch_size=6, micro_batch_size=micro), World(), WATCH)
    torch.testing.assert_close(torch.cat(seen), 0.7 * labels + 0.3 * labels[of_each])
    assert engine.module.passes == len(seen) == 6 // (micro or 6)


WATCH = MetricsLogger(None, 100, 6)


def test_the_loop_ends_when_it_is_told_to() -> None:
    engine, told = Recorder(), []

    def at_step(step: int) -> bool:
        told.append(step)
        return step == 3

    assert train(engine, batches(), objective, plan(), World(), MetricsLogger(None, 1, 8), at_step) == 3
    assert told == [1, 2, 3]
    assert len(engine.rates) == 3
    assert train(engine, batches(3), objective, plan(first_step=3), World(), MetricsLogger(None, 1, 8)) == 6
    assert engine.rates == pytest.approx(rates_of_all_steps())


def test_nothing_is_trained_when_nothing_is_left() -> None:
    engine = Recorder()
    assert train(engine, iter([]), objective, plan(first_step=6), World(), MetricsLogger(None, 1, 8)) == 6
    assert engine.rates == []


def test_times_are_told_of_every_step_and_forward_is_part_of_the_update() -> None:
    told: list[tuple[str, float]] = []
    train(
        Recorder(),
        batches(),
        objective,
        plan(micro_batch_size=2),
        World(),
        MetricsLogger(None, 1, 8),
        timed=lambda phase, seconds: told.append((phase, seconds)),
    )
    assert [phase for phase, _ in told] == ["wait", "forward", "update"] * 6
    assert all(0 < forward <= update for (_, forward), (_, update) in zip(told[1::3], told[2::3], strict=True))


@dataclass(frozen=True)
class Placed(Batch):
    """A batch that knows the positions of its samples."""

    positions: tuple[int, ...] = ()


class Drawing:
    """A loss that notes of which samples it is."""

    def __init__(self, noted: list[tuple[int, tuple[int, ...]]]) -> None:
        self.noted = noted

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """See Loss."""
        return objective(module, images, labels)

    def for_samples(self, seed: int, positions: tuple[int, ...]) -> Drawing:
        """See DrawingLoss."""
        self.noted.append((seed, positions))
        return self


def test_a_loss_that_draws_is_told_of_which_samples_it_is() -> None:
    noted: list[tuple[int, tuple[int, ...]]] = []
    placed = Placed(six().images, six().labels, positions=(30, 31, 32, 33, 34, 35))
    one = plan(num_steps=1, batch_size=6, micro_batch_size=3)
    train(Gradients(), iter([placed]), Drawing(noted), one, World(), WATCH)
    assert noted == [(3, (30, 31, 32)), (3, (33, 34, 35))]
    noted.clear()
    train(Gradients(), iter([six()]), Drawing(noted), one, World(), WATCH)
    assert noted == []
