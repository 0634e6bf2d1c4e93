"""The device: which one computes, pixels to network input on it, and how fast it multiplies matrices."""

from __future__ import annotations

import time

import torch
from torch import Tensor

# Of the measurement of the peak: rows of a square matrix, large enough to reach it, small enough for milliseconds;
# and how long it is measured, with at least so many products.
_CPU_SIZE, _GPU_SIZE = 768, 8192
_SECONDS, _MIN_TIMES = 0.3, 3


def compute_device() -> torch.device:
    """The device that networks of this process compute on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normalise(images_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 in [0, 255] -> *dtype* in [-1, 1] (big_vision: value_range(-1, 1)). Until here images stay uint8."""
    return images_BCHW.to(torch.float32).div_(127.5).sub_(1.0).to(dtype)


def measured_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of several square products in *dtype* with the threads that torch has now.

    Model FLOPs utilisation (MFU) is measured against it.
    """
    on_gpu = device.type != "cpu"
    size = _GPU_SIZE if on_gpu else _CPU_SIZE
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best, until, times = float("inf"), time.monotonic() + _SECONDS, 0
    while times < _MIN_TIMES or time.monotonic() < until:
        started = time.perf_counter()
        torch.mm(left, right)
        if on_gpu:
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - started)
        times += 1
    return 2.0 * size**3 / best
