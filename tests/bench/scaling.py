"""Two ranks against one: 64 images for each, the network of 5.5 M parameters in bf16, one thread a rank, over gloo.

What is told is the images/s of two ranks by twice those of one: 1 is perfect. Plain DistributedDataParallel (float32
weights, autocast) is measured in the same processes, in turns, as a reference for what two ranks can reach here.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.world import World
from pipeline.models.vit import ViT, has_weight_decay
from tests.bench.row import Row
from tests.bench.training import OPTIMIZER, SMALL, Bare, Ours, engine_recipe, seconds_of
from tests.support.ranks import spawn_ranks

_OF_A_RANK, _STEPS, _ROUNDS, _SPAWNS = 64, 6, 4, 2
_LIMIT_SECONDS = 240.0
_STAGES = (1, 2)
_DDP = "DistributedDataParallel"


def measure() -> list[Row]:
    """The median over rounds and spawns, ranks of one and of two in turns."""
    rates: dict[int, dict[str, list[float]]] = {1: defaultdict(list), 2: defaultdict(list)}
    for _ in range(_SPAWNS):
        for world_size in (1, 2):
            found = spawn_ranks(_rates, world_size, limit_seconds=_LIMIT_SECONDS)[0]
            for name, some in found.items():
                rates[world_size][name] += some
    one, two = ({name: statistics.median(some) for name, some in rates[size].items()} for size in (1, 2))
    rows = [
        Row(
            f"two ranks, {name}: images/s against twice those of one",
            f"{two[name]:,.0f} images/s",
            f"2 x {one[name]:,.0f} images/s",
            two[name] / one[name] / 2,
            None if name == _DDP else 0.85,
        )
        for name in one
    ]
    plain = two[_DDP] / one[_DDP]
    return rows + [
        Row(
            f"efficiency of two ranks, {name}, against {_DDP}",
            f"{two[name] / one[name] / 2:.2f}",
            f"{plain / 2:.2f}",
            two[name] / one[name] / plain,
        )
        for name in one
        if name != _DDP
    ]


def _rates() -> dict[str, list[float]]:
    """Images per second of all ranks, of each side, in turns. Runs on each rank."""
    world = World.from_environment()
    sides: dict[str, Callable[[int], None]] = {f"ZeRO-{stage}": _ours(stage, world) for stage in _STAGES}
    sides[_DDP] = Bare(_OF_A_RANK, bf16=True, wrap=_distributed)
    rates: dict[str, list[float]] = defaultdict(list)
    for number in range(_ROUNDS + 1):
        for name, side in sides.items():
            dist.barrier()
            seconds = seconds_of(partial(side, _STEPS))
            if number:  # the first one warms up
                rates[name].append(_OF_A_RANK * world.size * _STEPS / seconds)
    return dict(rates)


def _ours(stage: int, world: World) -> Ours:
    from pipeline.train.engine import DeepSpeedEngine

    batch_size = _OF_A_RANK * world.size
    recipe = engine_recipe(stage, bf16=True)
    return Ours(DeepSpeedEngine(ViT(SMALL), OPTIMIZER, recipe, batch_size, world, has_weight_decay), world, batch_size)


def _distributed(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module)


if __name__ == "__main__":
    for row in measure():
        print(row)
