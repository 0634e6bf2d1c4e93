"""What the tests here run on each rank: a tiny network, and batches that depend on the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.pretrain.objectives.classification import SoftmaxObjective
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.loop import LoopPlan, train
from pipeline.train.metrics import MetricsLogger
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe, ScheduleRecipe
from pipeline.train.torch_engine import Engine, StepResult, TorchEngine

BATCH = 8
CONFIG = ViTConfig(image_size=8, patch_size=4, width=16, depth=2, mlp_width=32, heads=2, num_classes=4)
OPTIMIZER = OptimizerRecipe(learning_rate=0.01, weight_decay=0.1, clip=0.5)


@dataclass(frozen=True)
class Part:
    """A rank's part of a global batch."""

    images: Tensor
    labels: Tensor
    coefficient: float = 1.0
    partners: Tensor | None = None


def batches(world: World, first_step: int = 0) -> Iterator[Part]:
    """The rank's consecutive share of global batches that depend on the step alone."""
    share = BATCH // world.size
    step = first_step
    while True:
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 4, (BATCH,), generator=generator)
        images = torch.randint(0, 256, (BATCH, 3, 8, 8), generator=generator, dtype=torch.uint8)
        mine = slice(world.rank * share, (world.rank + 1) * share)
        yield Part(images[mine], labels[mine])
        step += 1


class Noting:
    """An engine that notes the result of every update."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.results: list[StepResult] = []

    @property
    def module(self) -> nn.Module:
        """See Engine."""
        return self.engine.module

    @property
    def dtype(self) -> torch.dtype:
        """See Engine."""
        return self.engine.dtype

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """See Engine."""
        self.results.append(self.engine.update(losses, learning_rate))
        return self.results[-1]


def single(seed: int = 1) -> TorchEngine:
    """One process, plain torch."""
    return TorchEngine(ViT(CONFIG, seed=seed), OPTIMIZER, has_weight_decay)


def partitioned(world: World, recipe: EngineRecipe, seed: int = 1, dropout: float = 0.0) -> DeepSpeedEngine:
    """The same network over DeepSpeed."""
    config = CONFIG.model_copy(update={"dropout": dropout})
    return DeepSpeedEngine(ViT(config, seed=seed), OPTIMIZER, recipe, BATCH, world, has_weight_decay)


def train_some(
    engine: Engine,
    world: World,
    num_steps: int,
    first_step: int = 0,
    micro_batch_size: int = 0,
    at_step: Callable[[int], None] = lambda _: None,
) -> list[StepResult]:
    """The results of the updates from *first_step* to *num_steps*."""
    plan = LoopPlan(
        first_step=first_step,
        num_steps=num_steps,
        seed=0,
        peak=OPTIMIZER.learning_rate,
        schedule=ScheduleRecipe(warmup_steps=3),
        batch_size=BATCH,
        micro_batch_size=micro_batch_size,
    )
    noting = Noting(engine)
    train(
        noting, batches(world, first_step), SoftmaxObjective().loss, plan, world, MetricsLogger(None, 1, BATCH), at_step
    )
    return noting.results
