"""What the tests of engines run on each rank: a tiny network under any engine, and a state remembered in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.checkpoints.state import Fragment
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe
from pipeline.train.torch_engine import Engine, StepResult, TorchEngine

BATCH = 8
# 17 tokens: parameters whose lengths neither two nor three ranks divide
CONFIG = ViTConfig(
    image_size=16, patch_size=4, width=12, depth=2, mlp_width=20, heads=2, num_classes=5, position="learned"
)
OPTIMIZER = OptimizerRecipe(learning_rate=0.01, weight_decay=0.1, clip=0.5, ema=0.9)
Whole = dict[str, dict[str, Tensor]]  # kind -> name -> float32, flattened


def network(seed: int = 1, dropout: float = 0.0) -> ViT:
    """The network that all engines here train. Its head is not zero, so that every parameter has a gradient at once."""
    vit = ViT(CONFIG.model_copy(update={"dropout": dropout}), seed=seed)
    with torch.no_grad():
        nn.init.normal_(vit.head.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    return vit


def single(optimizer: OptimizerRecipe = OPTIMIZER, seed: int = 1) -> TorchEngine:
    """One process, plain torch."""
    return TorchEngine(network(seed), optimizer, has_weight_decay)


def partitioned(
    recipe: EngineRecipe, optimizer: OptimizerRecipe = OPTIMIZER, seed: int = 1, dropout: float = 0.0
) -> DeepSpeedEngine:
    """The same network over DeepSpeed, on the ranks of the default process group."""
    return DeepSpeedEngine(network(seed, dropout), optimizer, recipe, BATCH, World.from_environment(), has_weight_decay)


def steps(
    engine: Engine, last: int, first: int = 0, micro: int = 0, rate: Callable[[int], float] = lambda _: 0.01
) -> Iterator[StepResult]:
    """Updates *first* to *last*, each on its part of a global batch that depends on the step alone."""
    world = World.from_environment()
    share = BATCH // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    for step in range(first, last):
        images, labels = (tensor[mine] for tensor in batch(step))
        size = micro or share
        torch.manual_seed(1000 * step + world.rank)
        parts = zip(images.to(engine.dtype).split(size), labels.split(size), strict=True)
        yield engine.update([partial(_loss, engine, *part) for part in parts], rate(step))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The global batch of *step*."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, 16, 16, generator=generator)
    return images, torch.randint(0, CONFIG.num_classes, (BATCH,), generator=generator)


def _loss(engine: Engine, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(engine.module(images).float(), labels)


def hexes(results: Iterable[StepResult]) -> list[tuple[str, str]]:
    """Losses and norms to the last bit."""
    return [(row.loss.hex(), row.grad_norm.hex()) for row in results]


@dataclass
class Remembered:
    """A FragmentReader in memory, that also notes what it was asked for."""

    updates: int
    whole_shapes: dict[str, tuple[int, ...]]
    whole: Whole
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.whole_shapes

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        self.asked.append((kind, name, start, stop))
        return self.whole[kind][name][start:stop]

    def write(self, path: Path) -> None:
        torch.save([self.updates, self.whole_shapes, self.whole], path)

    @classmethod
    def of(cls, path: Path) -> Remembered:
        return cls(*torch.load(path, weights_only=True))


def remember(engine: Engine) -> Remembered:
    """What all ranks hold together, whole, on every rank. Fails when an element is held twice or not at all.

    Written apart from ``assembled``, which it is compared with.
    """
    own = [Fragment(f.kind, f.name, f.start, f.values.detach().cpu().clone()) for f in engine.fragments()]
    everyone = [own]
    if dist.is_initialized():
        everyone = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, own)
    shapes = engine.shapes()
    kinds = sorted({fragment.kind for fragments in everyone for fragment in fragments})
    whole = {kind: {name: torch.zeros(prod(shape)) for name, shape in shapes.items()} for kind in kinds}
    held = {kind: {name: torch.zeros(prod(shape)) for name, shape in shapes.items()} for kind in kinds}
    for fragment in (fragment for fragments in everyone for fragment in fragments):
        assert fragment.values.dtype == torch.float32
        assert fragment.values.ndim == 1
        assert len(fragment.values)
        here = slice(fragment.start, fragment.start + len(fragment.values))
        whole[fragment.kind][fragment.name][here] = fragment.values
        held[fragment.kind][fragment.name][here] += 1
    for kind, names in held.items():
        for name, counts in names.items():
            assert bool((counts == 1).all()), f"{kind} of {name}: held {counts.min()} to {counts.max()} times"
    return Remembered(engine.updates, shapes, whole)


def differing(one: Whole, two: Whole) -> list[str]:
    """The tensors that are not equal to the last bit."""
    assert one.keys() == two.keys()
    return [
        f"{kind} of {name}"
        for kind in one
        for name in one[kind].keys() | two[kind].keys()
        if not torch.equal(one[kind][name], two[kind][name])
    ]
