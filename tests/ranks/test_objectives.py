"""Objectives and rates by layer on two real ranks, over ZeRO: the curve of one process, mixup included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.pretrain.objectives.classification import SigmoidObjective
from pipeline.pretrain.objectives.masked_patches import MaskedPatches
from pipeline.pretrain.objectives.objective import Objective
from pipeline.stream.mixup import partners
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.loop import LoopPlan, train
from pipeline.train.metrics import MetricsLogger
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe, ScheduleRecipe
from pipeline.train.torch_engine import Engine, TorchEngine
from tests.support.ranks import spawn_ranks

pytestmark = pytest.mark.timeout(150)
BATCH, SLOTS, STEPS, CLASSES = 8, 4, 8, 5
CONFIG = ViTConfig(image_size=16, patch_size=4, width=16, depth=2, mlp_width=24, heads=2)
OPTIMIZER = OptimizerRecipe(learning_rate=0.01, clip=0.5, layer_decay=0.7)
OBJECTIVES: dict[str, Objective] = {"masked_patches": MaskedPatches(), "sigmoid": SigmoidObjective()}
CASES = [("masked_patches", 1), ("masked_patches", 3), ("sigmoid", 0), ("sigmoid", 2)]  # all stages: test_engine.py


@dataclass(frozen=True)
class Part:
    """A rank's part of a global batch in *SLOTS* slots, each sample mixed with the next of its slot."""

    images: Tensor
    labels: Tensor
    positions: tuple[int, ...]
    coefficient: float
    partners: Tensor | None


def network(name: str) -> nn.Module:
    """What is trained. Its last layer is not zero, so that every parameter has a gradient at once."""
    vit = ViT(CONFIG.model_copy(update={"num_classes": CLASSES if name == "sigmoid" else 0}), seed=1)
    module = OBJECTIVES[name].network(vit)
    last = [parameter for key, parameter in module.named_parameters() if key in ("decoder.weight", "head.weight")]
    with torch.no_grad():
        nn.init.normal_(last[0], std=0.3, generator=torch.Generator().manual_seed(1))
    return module


def batches(name: str, world: World) -> Iterator[Part]:
    """The rank's slots of global batches that depend on the step alone."""
    slots = SLOTS // world.size
    rows = torch.arange(BATCH).view(-1, SLOTS)[:, world.rank * slots : (world.rank + 1) * slots].flatten()
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (BATCH, 3, 16, 16), generator=draw, dtype=torch.uint8)[rows]
        many = (torch.rand(BATCH, CLASSES, generator=draw) < 0.4).float()[rows]
        labels = many if name == "sigmoid" else torch.full((len(rows),), -1)
        mixed = torch.from_numpy(partners(BATCH // SLOTS, slots))
        yield Part(images, labels, tuple((step * BATCH + rows).tolist()), 0.8, mixed)


def curve(name: str, engine: Engine, world: World) -> list[tuple[float, float]]:
    """Loss and gradient norm of every update."""
    found: list[tuple[float, float]] = []

    class Noting(MetricsLogger):
        def step(self, number: int, result: Any, learning_rate: float) -> None:
            found.append((result.loss, result.grad_norm))

    plan = LoopPlan(
        0, STEPS, 3, OPTIMIZER.learning_rate, ScheduleRecipe(warmup_steps=2), BATCH, BATCH // world.size // 2
    )
    train(engine, batches(name, world), OBJECTIVES[name].loss, plan, world, Noting(None, 1, BATCH))
    return found


def all_curves() -> dict[tuple[str, int], Any]:
    """On a rank: for each objective and ZeRO stage the curve, and the names of what is trained."""
    world, found = World.from_environment(), {}
    for name, stage in CASES:
        recipe = EngineRecipe(
            zero_stage=stage,  # type: ignore[arg-type]
            precision="fp32",
            micro_batch_size=BATCH // world.size // 2,
            persistence_threshold=0,
        )
        engine = DeepSpeedEngine(network(name), OPTIMIZER, recipe, BATCH, world, has_weight_decay)
        found[name, stage] = curve(name, engine, world), sorted(engine.shapes())
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[tuple[str, int], Any]]:
    """What each of two ranks found."""
    return spawn_ranks(all_curves, 2)


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_two_ranks_give_the_curve_of_one_process(ranks: list[Any], name: str, stage: int) -> None:
    module = network(name)
    expected = curve(name, TorchEngine(module, OPTIMIZER, has_weight_decay), World())
    assert len({loss for loss, _ in expected}) >= STEPS - 1  # the first rate is 0
    for rank in ranks:
        found, names = rank[name, stage]
        for part in range(2):
            assert [row[part] for row in found] == pytest.approx([row[part] for row in expected], rel=1e-5)
        assert names == sorted(key for key, _ in module.named_parameters())
