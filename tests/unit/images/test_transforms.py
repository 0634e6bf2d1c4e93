"""Resize, crop and normalise: sizes, exact pixels where they are known, and Pillow's own filters otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base.config import build
from pipeline.base.errors import RecipeError
from pipeline.images.transforms import EvaluationTransform, centre_crop, crop_and_resize, resize, resize_short_side
from pipeline.train.device import normalise
from tests.support.pictures import noise


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
def test_resize_is_pillows_filter_with_antialiasing(filter_name: str) -> None:
    pixels = noise(20, 30)
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[filter_name]
    wanted = np.asarray(Image.fromarray(pixels).resize((8, 6), kind))
    np.testing.assert_array_equal(resize(pixels, 8, 6, filter_name), wanted)


def test_bilinear_and_bicubic_differ() -> None:
    pixels = noise(20, 30)
    assert (resize(pixels, 8, 6, "bilinear") != resize(pixels, 8, 6, "bicubic")).any()


def test_halving_a_checkerboard_gives_grey() -> None:
    board = np.indices((16, 16)).sum(axis=0) % 2 * 255
    halved = resize(np.repeat(board[..., None], 3, axis=2).astype(np.uint8), 8, 8, "bilinear")
    assert np.abs(halved.astype(int) - 127).max() <= 4  # without antialiasing it would be black and white


def test_a_box_takes_that_part() -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[2:4, 4:8] = 200
    part = crop_and_resize(pixels, (4, 2, 8, 4), 8, 8, "bilinear")
    assert part.shape == (8, 8, 3)
    assert (part == 200).all()


def test_a_resize_to_the_same_size_changes_nothing() -> None:
    pixels = noise(9, 9)
    assert resize(pixels, 9, 9, "bicubic") is pixels


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [(10, 20, (8, 16)), (20, 10, (16, 8)), (10, 10, (8, 8)), (3, 1000, (8, 2667)), (7, 8, (8, 9)), (1, 1, (8, 8))],
)
def test_the_short_side_becomes_the_size(height: int, width: int, wanted: tuple[int, int]) -> None:
    assert resize_short_side(noise(height, width), 8, "bilinear").shape == (*wanted, 3)


def test_centre_crop_takes_the_middle() -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    np.testing.assert_array_equal(centre_crop(pixels, 4), pixels[1:5, 2:6])
    np.testing.assert_array_equal(centre_crop(pixels, 3), pixels[1:4, 2:5])


def test_the_short_mode_keeps_the_aspect() -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255  # the middle third is all that a square crop can see
    out = EvaluationTransform(size=10, resize=10, mode="short").apply(pixels)
    assert out.shape == (10, 10, 3)
    assert (out == 255).all()


def test_the_square_mode_squeezes() -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    out = EvaluationTransform(size=9, resize=9, mode="square", filter="bilinear").apply(pixels)
    assert out.shape == (9, 9, 3)
    assert (out[:, 0] == 0).all()
    assert (out[:, 4] == 255).all()
    assert (out[:, 8] == 0).all()


@pytest.mark.parametrize("mode", ["short", "square"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (5, 5), (1, 300), (28, 28)])
def test_the_transform_always_gives_the_networks_input(mode: Any, shape: tuple[int, int]) -> None:
    out = EvaluationTransform(size=24, resize=28, mode=mode).apply(noise(*shape))
    assert out.shape == (24, 24, 3)
    assert out.dtype == np.uint8
    assert out.flags["C_CONTIGUOUS"]


def test_the_transform_is_resize_then_crop() -> None:
    pixels = noise(40, 60)
    out = EvaluationTransform(size=24, resize=28, mode="square", filter="bicubic").apply(pixels)
    np.testing.assert_array_equal(out, resize(pixels, 28, 28, "bicubic")[2:26, 2:26])


def test_a_crop_larger_than_the_resized_image_is_refused() -> None:
    with pytest.raises(RecipeError, match="size 32 is more than resize 28"):
        build(EvaluationTransform, {"size": 32, "resize": 28})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_maps_bytes_to_minus_one_to_one(dtype: torch.dtype) -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    out = normalise(images, dtype)
    assert out.dtype == dtype
    torch.testing.assert_close(out.flatten().float(), torch.tensor([-1.0, -0.6, 1.0]), atol=2e-3, rtol=0)
    assert images.flatten().tolist() == [0, 51, 255]


def test_normalise_is_exact_in_float32() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    wanted = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(normalise(images, torch.float32).flatten().numpy(), wanted)
