"""A network whose parameters are bfloat16 while its buffers are not, as DeepSpeed leaves it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_the_forward_pass_stays_in_the_type_of_the_parameters(position: Literal["learned", "sincos2d"]) -> None:
    config = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, mlp_width=32, heads=2, position=position)
    network = ViT(config)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert network.tokens(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
