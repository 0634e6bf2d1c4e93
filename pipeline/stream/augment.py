"""Training augmentation. Every draw comes from (seed, epoch, sample key): never from rank, worker or time."""

from __future__ import annotations

import math

import numpy as np

from pipeline.base.seeds import generator
from pipeline.images.resize import Pixels, resize
from pipeline.stream.recipe import AugmentRecipe

_TRIES = 10  # draws of a box that fits before falling back to the whole image, as torchvision and tf do


def augment(pixels: Pixels, recipe: AugmentRecipe, seed: int, epoch: int, key: str) -> Pixels:
    """uint8 (H, W, 3) -> uint8 (size, size, 3)."""
    draw = generator(seed, "augment", epoch, key)
    if recipe.crop == "padded":
        out = _padded_crop(pixels, recipe, draw)
    elif recipe.crop == "resized":
        height, width = pixels.shape[:2]
        box = random_box(height, width, recipe, draw)
        out = resize(pixels, recipe.size, recipe.size, recipe.filter, box)
    else:
        out = resize(pixels, recipe.size, recipe.size, recipe.filter)
    if recipe.flip and draw.random() < 0.5:
        out = out[:, ::-1]
    return out


def random_box(height: int, width: int, recipe: AugmentRecipe, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a part with area in [area_min, 1] and a log-uniform aspect ratio."""
    for _ in range(_TRIES):
        area = height * width * draw.uniform(recipe.area_min, 1.0)
        aspect = math.exp(draw.uniform(-math.log(recipe.aspect_max), math.log(recipe.aspect_max)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _padded_crop(pixels: Pixels, recipe: AugmentRecipe, draw: np.random.Generator) -> Pixels:
    """Shift by up to *padding* pixels each way; what comes in from outside is black."""
    scaled = resize(pixels, recipe.size, recipe.size, recipe.filter)
    pad = recipe.padding
    dy, dx = (int(value) for value in draw.integers(-pad, pad + 1, size=2))
    out = np.zeros_like(scaled)
    size = recipe.size
    out[max(0, dy) : size + min(0, dy), max(0, dx) : size + min(0, dx)] = scaled[
        max(0, -dy) : size + min(0, -dy), max(0, -dx) : size + min(0, -dx)
    ]
    return out
