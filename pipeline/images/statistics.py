"""Exact sums over the pixels of an image, from which a dataset's mean and spread are made, and the digest of pixels."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]
_ROWS = 256  # 256 x 255 x 255 < 2^24: float32 holds every partial sum exactly, in whatever order it is formed
_ENOUGH_ROWS = 32
_BLOCK_VALUES = 200_000  # float32 values at a time: few calls, and no copy of a large image


def sampled_rows(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th row of *pixels*, at least 32 of them where there are so many: enough for a mean of many images.

    Sums over all rows would take a quarter of the time that decoding takes.
    """
    return pixels[:: max(1, pixels.shape[0] // _ENOUGH_ROWS)]


def channel_sums(pixels: NDArray[np.uint8]) -> tuple[Triple, Triple]:
    """Per channel (R, G, B) of uint8 (H, W, 3): the sum of the values, and of their squares. Exact.

    By float32 and BLAS, which is what numpy has vectorised for this; no rounding can happen (see ``_ROWS``), so the
    result is the same on every machine.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * 3)
    step = max(1, min(_ROWS, _BLOCK_VALUES // (width * 3)))
    ones = np.ones(step, dtype=np.float32)
    sums, squares = np.zeros(width * 3), np.zeros(width * 3)
    for start in range(0, height, step):
        block = rows[start : start + step].astype(np.float32)
        some = ones[: len(block)]
        sums += some @ block
        squares += some @ np.multiply(block, block, out=block)
    return _per_channel(sums), _per_channel(squares)


def _per_channel(columns: NDArray[np.float64]) -> Triple:
    red, green, blue = columns.reshape(-1, 3).sum(axis=0).tolist()
    return int(red), int(green), int(blue)


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """sha256, in hex, of the line ``<height> <width>`` and the RGB bytes: equal pixels, equal digest."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{height} {width}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
