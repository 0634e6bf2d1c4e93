"""Resizing and cropping of uint8 (H, W, 3) arrays, antialiased throughout.

``resize`` is Pillow's, whose pixels the protocols of evaluation were written for. ``crop_and_resize`` is for training:
by fast_image_resize (cykooz-resizer), 3 to 4 times as fast, in integers, and equal bit by bit whatever vector
instructions the machine has (``tests/bench/augmenting.py``). It differs from Pillow's by one step of 255, and more only
where bicubic overshoots 0 or 255.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from pipeline.base.config import Config

try:
    import cykooz_resizer
except ImportError:  # no wheel for Linux on arm
    cykooz_resizer = None

resizer = cykooz_resizer  # fast_image_resize, or None
Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
_PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_FAST_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3", "box": "box"}


def resize(pixels: Pixels, width: int, height: int, filter_name: str) -> Pixels:
    """*pixels* at *height* x *width*."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = Image.fromarray(pixels).resize((width, height), _PILLOW_FILTERS[filter_name])
    return np.asarray(resized, dtype=np.uint8)


def crop_and_resize(pixels: Pixels, box: Box, width: int, height: int, filter_name: str) -> Pixels:
    """The part of *pixels* in *box* at *height* x *width*, contiguous, perhaps read-only or *pixels* itself.

    Only what is in the box counts: cut first, then resized, as torchvision and big_vision do. Without the library of
    ``fast_resize`` Pillow does it, slower and up to one step of 255 off.
    """
    left, top, right, bottom = box
    part = pixels[top:bottom, left:right]
    if part.shape[:2] == (height, width):
        return np.ascontiguousarray(part)
    if resizer is None:
        return resize(part, width, height, filter_name)
    return fast_resize(part, width, height, filter_name)


def fast_resize(pixels: Pixels, width: int, height: int, filter_name: str) -> Pixels:
    """*pixels* at *height* x *width*, read-only; by fast_image_resize, which ``resizer`` must be."""
    source = resizer.ImageData(pixels.shape[1], pixels.shape[0], resizer.PixelType.U8x3, pixels.tobytes())
    target = resizer.ImageData(width, height, resizer.PixelType.U8x3)
    convolution = resizer.ResizeAlg.convolution(resizer.FilterType[_FAST_FILTERS[filter_name]])
    resizer.Resizer().resize(source, target, resizer.ResizeOptions(resize_alg=convolution))
    return np.frombuffer(target.get_buffer(), dtype=np.uint8).reshape(height, width, 3)


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


class EvaluationTransform(Config):
    """Resize, then centre crop. ``square`` resizes both sides (few-shot protocol), ``short`` keeps the aspect."""

    size: int = Field(224, gt=0, description="side of the crop, in pixels: the network's input")
    resize: int = Field(256, gt=0, description="side to resize to before the crop")
    mode: Literal["square", "short"] = "short"
    filter: Literal["bilinear", "bicubic"] = "bicubic"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.size > self.resize:
            raise ValueError(f"size {self.size} is more than resize {self.resize}; a crop cannot be larger")
        return self

    def apply(self, pixels: Pixels) -> Pixels:
        """uint8 (H, W, 3) -> uint8 (size, size, 3)."""
        if self.mode == "square":
            scaled = resize(pixels, self.resize, self.resize, self.filter)
        else:
            scaled = resize_short_side(pixels, self.resize, self.filter)
        return np.ascontiguousarray(centre_crop(scaled, self.size))
