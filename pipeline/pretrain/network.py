"""The network as a run begins with it: drawn from its seed, or with weights from elsewhere (initial.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.base.seeds import derive
from pipeline.checkpoints.fragments import EMA, WEIGHT
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.pretrain.objectives.objective import Objective
from pipeline.pretrain.recipe import PretrainRecipe


def first_network(
    recipe: PretrainRecipe, config: ViTConfig, objective: Objective, begin: Callable[[ViT], None] = lambda _: None
) -> nn.Module:
    """What the engine trains: the same on every rank. *begin* may give the drawn network other weights."""
    vit = ViT(config, seed=derive(recipe.seed, "weights"))
    begin(vit)
    if recipe.checkpoint_blocks:
        vit.checkpointing = True
    return objective.network(vit)


@dataclass(frozen=True)
class Untrained:
    """*network* as a FragmentReader: its weights, an average equal to them, and an optimizer that has done nothing."""

    network: nn.Module
    updates: Final[int] = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See FragmentReader."""
        return {name: tuple(parameter.shape) for name, parameter in self.network.named_parameters()}

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See FragmentReader."""
        if kind not in (WEIGHT, EMA):
            return torch.zeros(stop - start)
        return self.network.get_parameter(name).detach().float().flatten()[start:stop]
