"""Which parameters share weight decay and learning rate; layer-wise decay against its formula, in a real update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.pretrain.objectives.masked_patches import MaskedPatches
from pipeline.train.optimizer import lr_scales, parameter_groups
from pipeline.train.recipe import OptimizerRecipe

CONFIG = ViTConfig(image_size=8, patch_size=4, width=16, depth=3, mlp_width=32, heads=2, num_classes=4, pre_logits=8)
DECAY = 0.5


def names_of(module: nn.Module, groups: list[dict[str, Any]]) -> list[set[str]]:
    """The names of the parameters of each group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def groups_of(module: nn.Module, **fields: Any) -> list[dict[str, Any]]:
    """The groups for AdamW."""
    return parameter_groups(module, OptimizerRecipe(**fields), has_weight_decay)


def test_weight_decay_is_for_matrices_alone() -> None:
    vit = ViT(CONFIG)
    groups = groups_of(vit)
    with_decay, rest = names_of(vit, groups)
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.1, 1.0), (0.0, 1.0)]
    assert {"patches.projection.weight", "head.weight", "pre_logits.weight", "blocks.0.mlp.up.weight"} <= with_decay
    assert {"cls", "positions", "norm.weight", "head.bias", "blocks.2.norm1.weight"} <= rest
    assert not any(name.endswith("bias") or "norm" in name for name in with_decay)
    assert with_decay | rest == {name for name, _ in vit.named_parameters()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_each_layer_has_its_power_of_the_decay(wrapped: bool) -> None:
    """The embeddings the lowest, block i decay^(depth + 1 - i), what follows the blocks all of it."""
    module: nn.Module = ViT(CONFIG)
    if wrapped:
        module = MaskedPatches().network(ViT(CONFIG.model_copy(update={"num_classes": 0, "pre_logits": 0})))
    scales = lr_scales([name for name, _ in module.named_parameters()], DECAY)
    for name, scale in scales.items():
        own = name.removeprefix("vit.")
        if own.startswith("blocks."):
            assert scale == DECAY ** (3 + 1 - (int(own.split(".")[1]) + 1)), name
        elif own in ("cls", "positions", "mask") or own.startswith("patches."):
            assert scale == DECAY**4, name
        else:
            assert own.split(".")[0] in ("norm", "pre_logits", "head", "decoder"), name
            assert scale == 1.0, name


def test_groups_of_all_layers_hold_every_parameter_once() -> None:
    vit = ViT(CONFIG)
    groups = groups_of(vit, layer_decay=DECAY)
    names = names_of(vit, groups)
    assert sum(map(len, names)) == len(list(vit.parameters()))
    assert len({(group["lr_scale"], group["weight_decay"]) for group in groups}) == len(groups) == 2 * 5
    assert all(group["params"] for group in groups)


def test_equal_modules_have_equal_groups_in_equal_order() -> None:
    one, other = ViT(CONFIG), ViT(CONFIG)
    assert names_of(one, groups_of(one, layer_decay=DECAY)) == names_of(other, groups_of(other, layer_decay=DECAY))


def test_frozen_parameters_are_in_no_group() -> None:
    vit = ViT(CONFIG)
    vit.blocks.requires_grad_(False)
    names = set().union(*names_of(vit, groups_of(vit)))
    assert names == {name for name, _ in vit.named_parameters() if not name.startswith("blocks.")}


def test_a_module_without_blocks_has_one_rate() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert {group["lr_scale"] for group in groups_of(module, layer_decay=DECAY)} == {1.0}


def test_an_update_goes_as_far_as_the_scale_says() -> None:
    """Plain SGD with all gradients one: a weight moves by rate * scale."""
    vit = ViT(CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in vit.named_parameters()}
    optimizer = torch.optim.SGD(groups_of(vit, layer_decay=DECAY, weight_decay=0.0), lr=1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.25 * group["lr_scale"]
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in vit.named_parameters():
        scale = lr_scales(list(before), DECAY)[name]
        torch.testing.assert_close(before[name] - parameter.detach(), torch.full_like(parameter, 0.25 * scale))
