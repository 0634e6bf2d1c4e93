"""Weights trained on pixels of another normalisation: folded into the patch projection, so that ours, [-1, 1], does.

Patches do not overlap and nothing is padded, so this is exact: the same function of the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.models.convert.found import CHANNELS


def fold_normalisation(state: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """*state* for pixels in [-1, 1], of weights for (pixel / 255 - mean) / std; mean and std per channel.

    With p = (y + 1) / 2: (p - mean) / std = y / (2 std) + (1 - 2 mean) / (2 std).
    """
    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    weight = state["patches.projection.weight"].double()
    kernel_DCP = weight.reshape(weight.shape[0], CHANNELS, -1)
    scaled = kernel_DCP / (2 * std_C)[None, :, None]
    shift = (scaled * (1 - 2 * mean_C)[None, :, None]).sum(dim=(1, 2))
    bias = state["patches.projection.bias"].double() + shift
    folded = {"patches.projection.weight": scaled.flatten(1).float(), "patches.projection.bias": bias.float()}
    return state | folded
