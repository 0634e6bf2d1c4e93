"""The network as a run begins with it: drawn from its seed, or with weights from elsewhere (``init``)."""

from __future__ import annotations

from torch import nn

from pipeline.base.errors import MismatchError
from pipeline.base.seeds import derive
from pipeline.base.store import Store, Stores
from pipeline.checkpoints.warm import read_initial
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.models.weights import unpack_model
from pipeline.pretrain.objectives.objective import Objective
from pipeline.pretrain.recipe import PretrainRecipe

_HEAD = ("head.", "pre_logits.")
_MAY_DIFFER = {"num_classes", "head_bias", "dropout", "drop_path", "pre_logits", "position_std"}


def first_network(
    workspace: Store, stores: Stores, recipe: PretrainRecipe, config: ViTConfig, objective: Objective, *, warm: bool
) -> nn.Module:
    """What the engine trains: the same on every rank. *warm*: nothing will be resumed, so ``recipe.init`` counts.

    Raises MismatchError naming how the weights' architecture differs, and what ``read_initial`` raises.
    """
    vit = ViT(config, seed=derive(recipe.seed, "weights"))
    if recipe.init and warm:
        _take_over(vit, config, read_initial(workspace, recipe.init, stores), recipe.init)
    if recipe.checkpoint_blocks:
        vit.checkpointing = True
    return objective.network(vit)


def _take_over(vit: ViT, config: ViTConfig, data: bytes, where: str) -> None:
    """Every weight but the head's, and the head's too when the classes are as many."""
    given, description = unpack_model(data, where)
    ours, theirs = config.model_dump(), description.architecture.model_dump()
    fields = [f"{name}: {theirs[name]} -> {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
    fields = [text for text in fields if text.partition(":")[0] not in _MAY_DIFFER]
    if fields:
        raise MismatchError(f"init {where} is of another architecture: {'; '.join(fields)}")
    own = vit.state_dict()
    taken = {
        name: tensor
        for name, tensor in given.state_dict().items()
        if name in own and (not name.startswith(_HEAD) or tensor.shape == own[name].shape)
    }
    vit.load_state_dict(own | taken)
