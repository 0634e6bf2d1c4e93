"""ImageNet-like JPEGs: 500 x 375 or 375 x 500 pixels, 60 to 110 kB, distinct, cut from real photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

LONG, SHORT = 500, 375
_QUALITIES = {"china.jpg": (91, 94), "flower.jpg": (97, 98)}  # what puts a crop of each between 60 and 110 kB


def imagenet_like(count: int, seed: int = 0) -> Iterator[bytes]:
    """*count* files, the same for the same *seed*; about 300 a second. A longer series begins like a shorter one."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield _one(draw)


def _one(draw: np.random.Generator) -> bytes:
    name, photograph = _photographs()[int(draw.integers(2))]
    width = float(draw.uniform(LONG, photograph.height * LONG / SHORT))
    height = width * SHORT / LONG
    left, top = draw.uniform(0, photograph.width - width), draw.uniform(0, photograph.height - height)
    box = (left, top, left + width, top + height)
    image = photograph.resize((LONG, SHORT), Image.Resampling.BICUBIC, box=box)
    if draw.integers(2):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw.random() < 0.25:  # a quarter of ImageNet stands upright
        image = image.transpose(Image.Transpose.ROTATE_90)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(draw.integers(*_QUALITIES[name], endpoint=True)))
    return buffer.getvalue()


@cache
def _photographs() -> list[tuple[str, Image.Image]]:
    """The two photographs that scikit-learn carries, 640 x 427 pixels each."""
    bunch = load_sample_images()
    names = [name.replace("\\", "/").rpartition("/")[2] for name in bunch.filenames]
    return sorted(
        ((name, Image.fromarray(pixels)) for name, pixels in zip(names, bunch.images, strict=True)),
        key=lambda pair: pair[0],
    )
