"""The network as a run begins with it: drawn from its seed, or with weights from elsewhere (initial.py)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pipeline.base.seeds import derive
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
