"""Sums are exact, whatever the shape; the digest says pixels and shape."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline.images.check import channel_sums, pixels_digest, sampled_rows
from tests.support.pictures import noise


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (3, 1), (7, 5), (255, 3), (256, 3), (257, 3), (375, 500), (1, 32_768), (32_768, 1)]
)
def test_sums_are_exact(shape: tuple[int, int]) -> None:
    for pixels in (noise(*shape), np.full((*shape, 3), 255, np.uint8), noise(*shape) // 128 * 255):
        wide = pixels.reshape(-1, 3).astype(np.int64)
        assert channel_sums(pixels) == (tuple(wide.sum(0).tolist()), tuple((wide * wide).sum(0).tolist()))


def test_a_large_white_image() -> None:
    pixels = np.full((4_000, 3_000, 3), 255, np.uint8)
    assert channel_sums(pixels) == ((255 * 12_000_000,) * 3, (65_025 * 12_000_000,) * 3)


def test_a_turned_view() -> None:
    pixels = noise(9, 4)
    assert channel_sums(pixels.transpose(1, 0, 2)) == channel_sums(pixels)
    assert pixels_digest(pixels[::-1][::-1]) == pixels_digest(pixels)


def test_the_digest_is_of_shape_and_bytes() -> None:
    pixels = noise(4, 6)
    assert pixels_digest(pixels) == hashlib.sha256(b"4 6\n" + pixels.tobytes()).hexdigest()
    assert pixels_digest(pixels.reshape(6, 4, 3)) != pixels_digest(pixels)


def test_tall_images_are_sampled_and_short_ones_are_not() -> None:
    for height, rows in [(1, 1), (32, 32), (63, 63), (64, 32), (375, 35), (1_000, 33)]:
        pixels = np.arange(height, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(3, 2)
        assert sampled_rows(pixels).shape == (rows, 2, 3)
