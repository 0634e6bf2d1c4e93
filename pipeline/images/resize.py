"""Resizing and cropping of uint8 (H, W, 3) arrays, by Pillow's antialiased filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(
    pixels: Pixels, width: int, height: int, filter_name: str, box: tuple[int, int, int, int] | None = None
) -> Pixels:
    """*pixels*, or its part in *box* (left, top, right, bottom), at *height* x *width*."""
    if box is None and pixels.shape[:2] == (height, width):
        return pixels
    resized = Image.fromarray(pixels).resize((width, height), FILTERS[filter_name], box=box)
    return np.asarray(resized, dtype=np.uint8)


def resize_short_side(pixels: Pixels, size: int, filter_name: str) -> Pixels:
    """The shorter side becomes *size*, the aspect stays."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    return resize(pixels, max(size, round(width * scale)), max(size, round(height * scale)), filter_name)


def centre_crop(pixels: Pixels, size: int) -> Pixels:
    """The central *size* x *size* part."""
    height, width = pixels.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]
