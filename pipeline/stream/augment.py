"""Training augmentation. Every draw comes from (seed, epoch, sample key): never from rank, worker or time.

The order of the draws is fixed: the crop's, one for the flip, then RandAugment's. The flip's is drawn in any case, so
turning flip or RandAugment on or off leaves the crop as it was, and turning flip leaves RandAugment's operations.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.base.seeds import generator
from pipeline.images.resize import Box, Pixels, crop_and_resize
from pipeline.stream.randaugment import randaugment
from pipeline.stream.recipe import AugmentRecipe

_TRIES = 10  # draws of a box that fits before falling back to the whole image, as torchvision and tf do


def augment(pixels: Pixels, recipe: AugmentRecipe, seed: int, epoch: int, key: str) -> Pixels:
    """uint8 (H, W, 3) -> uint8 (size, size, 3), contiguous, perhaps read-only or *pixels* itself."""
    draw = generator(seed, "augment", epoch, key)
    out = _cropped(pixels, recipe, draw)
    if draw.random() < 0.5 and recipe.flip:
        out = mirrored(out)
    return randaugment(out, recipe.randaugment, draw)


def random_box(height: int, width: int, recipe: AugmentRecipe, draw: np.random.Generator) -> Box:
    """(left, top, right, bottom) of a part with area in [area_min, 1] and a log-uniform aspect ratio."""
    for _ in range(_TRIES):
        area = height * width * draw.uniform(recipe.area_min, 1.0)
        aspect = math.exp(draw.uniform(-math.log(recipe.aspect_max), math.log(recipe.aspect_max)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def mirrored(pixels: Pixels) -> Pixels:
    """*pixels* (H, W, 3) with left and right exchanged, contiguous."""
    out = np.empty_like(pixels, order="C")
    for channel in range(3):  # a quarter of the time of copying three bytes at a time
        out[..., channel] = pixels[:, ::-1, channel]
    return out


def _cropped(pixels: Pixels, recipe: AugmentRecipe, draw: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    box = random_box(height, width, recipe, draw) if recipe.crop == "resized" else (0, 0, width, height)
    scaled = crop_and_resize(pixels, box, recipe.size, recipe.size, recipe.filter)
    return _shifted(scaled, recipe.padding, draw) if recipe.crop == "padded" else scaled


def _shifted(pixels: Pixels, padding: int, draw: np.random.Generator) -> Pixels:
    """*pixels* (S, S, 3) shifted by up to *padding* each way; what comes in from outside is black."""
    dy, dx = (int(value) for value in draw.integers(-padding, padding + 1, size=2))
    out = np.zeros_like(pixels)
    size = len(pixels)
    out[max(0, dy) : size + min(0, dy), max(0, dx) : size + min(0, dx)] = pixels[
        max(0, -dy) : size + min(0, -dy), max(0, -dx) : size + min(0, -dx)
    ]
    return out
