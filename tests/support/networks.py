"""Small networks none of whose weights is zero or one, so that a swapped or forgotten tensor shows; and their input."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT


def randomised(config: ViTConfig, seed: int = 7) -> ViT:
    """A ViT with every parameter drawn from *seed*, norms around 1, in evaluation mode."""
    model = ViT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return model.eval()


def images(count: int = 2, size: int = 16) -> Tensor:
    """Seeded noise in [-1, 1], (count, 3, size, size)."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1
