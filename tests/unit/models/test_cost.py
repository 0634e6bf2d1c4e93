"""The cost model against what torch counts, for every size; on the meta device, so nothing is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.config import SIZES, ViTConfig, config_by_name
from pipeline.models.cost import activation_bytes_per_image, count_parameters, flops_per_image, training_flops_per_image
from pipeline.models.vit import ViT

_BATCH = 2
_PATCHES = {"Ti": 16, "S": 32, "B": 16, "L": 32, "H": 14, "g": 14, "G": 14}
_VARIANTS: list[dict[str, Any]] = [
    {"num_classes": 1000},
    {"num_classes": 10, "pool": "gap", "position": "sincos2d", "pre_logits": 64},
    {"image_size": 224 * 2, "num_classes": 0},
]


def _network(config: ViTConfig) -> tuple[ViT, torch.Tensor]:
    with torch.device("meta"):
        return ViT(config), torch.zeros(_BATCH, 3, config.image_size, config.image_size)


@pytest.mark.parametrize("variant", _VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_flops_agree_with_torch(size: str, variant: dict[str, Any]) -> None:
    config = config_by_name(f"{size}/{_PATCHES[size]}", **variant)
    network, images = _network(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as forward:
        network(images)
    assert forward.get_total_flops() == _BATCH * flops_per_image(config).total
    with FlopCounterMode(display=False) as both:
        network(images).sum().backward()
    assert both.get_total_flops() == _BATCH * training_flops_per_image(config)


def test_the_parts_are_those_of_the_modules() -> None:
    config = config_by_name("S/16", num_classes=1000, pre_logits=384)
    network, images = _network(config)
    with FlopCounterMode(display=False, depth=4) as counter:
        network(images)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    flops = flops_per_image(config)
    attention = sum(count for name, count in by_module.items() if name.endswith(".attention"))
    assert attention == _BATCH * (flops.projections + flops.scores)
    assert sum(count for name, count in by_module.items() if name.endswith(".mlp")) == _BATCH * flops.mlp
    assert by_module["ViT.patches"] == _BATCH * flops.patches
    assert by_module["ViT.head"] + by_module["ViT.pre_logits"] == _BATCH * flops.head


def test_checkpointing_computes_the_blocks_once_more() -> None:
    config = config_by_name("B/16", num_classes=1000)
    forward = flops_per_image(config)
    again = training_flops_per_image(config, checkpointed=True) - training_flops_per_image(config)
    assert again == forward.projections + forward.scores + forward.mlp


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_activations_are_within_a_tenth(dtype: torch.dtype) -> None:
    """On real tensors of more tokens than the explicit attention takes; parameters are not counted."""
    config = ViTConfig(image_size=96, patch_size=4, width=64, depth=3, mlp_width=256, heads=2, num_classes=10)
    network = ViT(config).to(dtype)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(_BATCH, 3, 96, 96, dtype=dtype))
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    estimate = _BATCH * activation_bytes_per_image(config, dtype.itemsize)
    assert estimate == pytest.approx(counted, rel=0.1)


def test_checkpointing_keeps_little_more_than_the_blocks_inputs() -> None:
    config = config_by_name("L/16", num_classes=1000)
    inputs = 2 * config.depth * config.num_tokens * config.width
    kept = activation_bytes_per_image(config, 2, checkpointed=True)
    assert inputs < kept < activation_bytes_per_image(config, 2) / 8
