"""What the tables of timm and Hugging Face share: a convolution for the patches; q, k, v apart."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.config import ViTConfig
from pipeline.models.convert.found import CHANNELS
from pipeline.models.convert.rows import Row, permuted


def patches_row(config: ViTConfig, theirs: str) -> Row:
    """The patch projection, (D, C*P*P), as the kernel of a convolution, (D, C, P, P)."""
    kernel = (-1, CHANNELS, config.patch_size, config.patch_size)
    return permuted(
        "patches.projection.weight", theirs, lambda tensor: tensor.reshape(kernel), lambda tensor: tensor.flatten(1)
    )


def separated(ours: str, theirs: tuple[str, str, str]) -> Row:
    """Our fused q, k, v as three tensors."""
    return Row(ours, theirs, lambda tensor: tensor.chunk(3), lambda tensors: _joined(list(tensors)))


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors)
