"""Pixels to network input. Images stay uint8 until here, on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(images_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 in [0, 255] -> *dtype* in [-1, 1] (big_vision: value_range(-1, 1))."""
    return images_BCHW.to(torch.float32).div_(127.5).sub_(1.0).to(dtype)
