"""Augmentation: its draws come from (seed, epoch, key) alone, and its pixels are what the recipe says."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.config import build
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import RecipeError
from pipeline.base.seeds import generator
from pipeline.images import transforms as resizing
from pipeline.images.transforms import crop_and_resize, resize
from pipeline.stream.augment import augment, mirrored, random_box
from pipeline.stream.recipe import AugmentRecipe, RandAugmentRecipe, StreamRecipe
from tests.support.pictures import noise

PICTURE = noise(20, 30)
CROPS = ("resized", "padded", "none")
STRONG = RandAugmentRecipe(layers=2, magnitude=15)


def whole(filter_name: str = "bilinear") -> Any:
    """All of the picture at 8 x 8."""
    return crop_and_resize(PICTURE, (0, 0, 30, 20), 8, 8, filter_name)


def recipe_of(**fields: Any) -> AugmentRecipe:
    """A recipe for 8 x 8 pixels."""
    return AugmentRecipe(**({"size": 8, "padding": 3} | fields))


@pytest.mark.parametrize("crop", CROPS)
def test_the_same_words_give_the_same_pixels_whatever_was_drawn_before(crop: Any) -> None:
    recipe = recipe_of(crop=crop)
    first = augment(PICTURE, recipe, 1, 2, "key")
    np.random.default_rng(0)
    np.random.seed(7)
    for at in range(5):
        augment(PICTURE, recipe, 1, at, f"other {at}")
    np.testing.assert_array_equal(augment(PICTURE, recipe, 1, 2, "key"), first)


@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_seed_epoch_and_key_each_change_the_draw(crop: Any) -> None:
    recipe = recipe_of(crop=crop)
    for words in ([(seed, 0, "key") for seed in range(8)], [(0, epoch, "key") for epoch in range(8)]):
        assert len({augment(PICTURE, recipe, *word).tobytes() for word in words}) >= 6
    assert len({augment(PICTURE, recipe, 0, 0, f"key {at}").tobytes() for at in range(8)}) >= 6


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (8, 8), (1, 1), (1, 200), (5, 5)])
def test_the_output_is_square_bytes(crop: Any, shape: tuple[int, int]) -> None:
    out = augment(noise(*shape), recipe_of(crop=crop), 0, 0, "key")
    assert out.shape == (8, 8, 3)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous


def test_the_picture_itself_is_not_changed() -> None:
    picture = noise(8, 8)
    before = picture.copy()
    for crop in CROPS:
        for at in range(60):
            augment(picture, recipe_of(crop=crop, randaugment=STRONG), 0, at, "key")
        np.testing.assert_array_equal(picture, before)


def test_none_is_a_resize_of_the_whole() -> None:
    out = augment(PICTURE, recipe_of(crop="none", flip=False, filter="bicubic"), 0, 0, "key")
    np.testing.assert_array_equal(out, whole("bicubic"))


def test_half_of_the_pictures_are_mirrored_and_the_others_are_not() -> None:
    plain = whole()
    flipped = 0
    for at in range(400):
        out = augment(PICTURE, recipe_of(crop="none"), 0, 0, f"key {at}")
        mirrored = np.array_equal(out, plain[:, ::-1])
        assert mirrored or np.array_equal(out, plain)
        flipped += mirrored
    assert 160 <= flipped <= 240  # four standard deviations; the draws are fixed


def test_without_flip_nothing_is_mirrored() -> None:
    plain = whole()
    for at in range(50):
        np.testing.assert_array_equal(augment(PICTURE, recipe_of(crop="none", flip=False), 0, 0, f"{at}"), plain)


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 30, 20), (3, 2, 29, 17), (10, 5, 14, 8), (29, 19, 30, 20), (0, 4, 30, 5)])
def test_a_crop_is_pillows_of_the_part_alone_to_one_step(box: Any, filter_name: str) -> None:
    left, top, right, bottom = box
    picture = PICTURE // 2 + 64  # where bicubic overshoots, the two cut off at different points
    part = picture[top:bottom, left:right]
    ours = crop_and_resize(picture, box, 8, 8, filter_name)
    assert np.abs(ours.astype(int) - resize(part, 8, 8, filter_name)).max() <= 1
    elsewhere = np.zeros_like(picture)
    elsewhere[top:bottom, left:right] = part
    np.testing.assert_array_equal(crop_and_resize(elsewhere, box, 8, 8, filter_name), ours)


def test_a_crop_is_antialiased() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    small = crop_and_resize(board, (0, 0, 64, 64), 16, 16, "bilinear")
    assert np.abs(small.astype(int) - 127).max() <= 4  # without antialiasing it would be black and white


@pytest.mark.skipif(resizing.resizer is None, reason="needs cykooz-resizer")
@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
def test_crops_are_the_same_with_every_vector_instruction_set(
    filter_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, picture, outs = resizing.resizer, noise(150, 200), set()
    plain, boxes = library.Resizer, [(0, 0, 200, 150), (11, 7, 160, 149), (50, 50, 80, 90)]
    for extension in library.CpuExtensions:
        limited = plain()
        with suppress(ValueError):  # what this machine does not have
            limited.cpu_extensions = extension
            monkeypatch.setattr(library, "Resizer", lambda limited=limited: limited)
            outs.add(b"".join(crop_and_resize(picture, box, 64, 64, filter_name).tobytes() for box in boxes))
    assert len(outs) == 1


def test_without_the_library_pillow_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = augment(PICTURE, recipe_of(crop="resized"), 0, 0, "key")
    monkeypatch.setattr(resizing, "resizer", None)
    pillows = augment(PICTURE, recipe_of(crop="resized"), 0, 0, "key")
    assert pillows.flags.c_contiguous
    assert np.abs(ours.astype(int) - pillows).max() <= 1


@pytest.mark.parametrize("crop", CROPS)
def test_flip_and_randaugment_leave_the_crop_as_it_was(crop: Any) -> None:
    for at in range(30):
        plain = augment(PICTURE, recipe_of(crop=crop, flip=False), 0, 0, f"{at}")
        flipped = augment(PICTURE, recipe_of(crop=crop, flip=True), 0, 0, f"{at}")
        assert any(np.array_equal(flipped, wanted) for wanted in (plain, plain[:, ::-1]))
    # and the operation that is drawn does not hang on the flip either
    invert = RandAugmentRecipe(layers=1, magnitude=10)
    kinds = set()
    for at in range(200):
        plain = augment(PICTURE, recipe_of(crop=crop, flip=False), 0, 0, f"{at}")
        one = augment(PICTURE, recipe_of(crop=crop, flip=False, randaugment=invert), 0, 0, f"{at}")
        other = augment(PICTURE, recipe_of(crop=crop, randaugment=invert), 0, 0, f"{at}")
        inverted = np.array_equal(one, ~plain)
        kinds.add(inverted)
        if inverted:
            assert any(np.array_equal(other, wanted) for wanted in (~plain, ~plain[:, ::-1]))
    assert kinds == {True, False}


def test_randaugment_comes_after_crop_and_flip_and_is_drawn_by_seed_epoch_and_key() -> None:
    recipe = recipe_of(crop="none", size=20, flip=False, randaugment=STRONG)
    first = augment(noise(20, 20), recipe, 1, 2, "key")
    np.testing.assert_array_equal(augment(noise(20, 20), recipe, 1, 2, "key"), first)
    assert len({augment(noise(20, 20), recipe, 1, epoch, "key").tobytes() for epoch in range(20)}) >= 8
    assert len({augment(noise(20, 20), recipe, seed, 2, "key").tobytes() for seed in range(20)}) >= 8
    assert len({augment(noise(20, 20), recipe, 1, 2, f"{at}").tobytes() for at in range(20)}) >= 8


def test_mirrored_exchanges_left_and_right() -> None:
    np.testing.assert_array_equal(mirrored(PICTURE), PICTURE[:, ::-1])
    assert mirrored(PICTURE[:, ::2]).flags.c_contiguous


def test_padded_shifts_by_up_to_the_padding_and_fills_with_black() -> None:
    picture = noise(8, 8) // 2 + 100  # no black in it
    padded = np.pad(picture, ((3, 3), (3, 3), (0, 0)))
    shifts = {
        (dy, dx): padded[3 - dy : 11 - dy, 3 - dx : 11 - dx].tobytes() for dy in range(-3, 4) for dx in range(-3, 4)
    }
    known = {pixels: shift for shift, pixels in shifts.items()}
    seen = {known[augment(picture, recipe_of(crop="padded", flip=False), 0, 0, f"{at}").tobytes()] for at in range(600)}
    assert seen == set(shifts)


def test_padding_as_large_as_the_picture() -> None:
    recipe = recipe_of(crop="padded", padding=8)
    assert {augment(noise(8, 8), recipe, 0, 0, f"{at}").shape for at in range(100)} == {(8, 8, 3)}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(0, 2**32),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([1.0, 4 / 3, 4.0]),
)
def test_random_boxes_lie_inside_and_have_the_area_asked_for(
    height: int, width: int, seed: int, area_min: float, aspect_max: float
) -> None:
    recipe = AugmentRecipe(area_min=area_min, aspect_max=aspect_max)
    left, top, right, bottom = random_box(height, width, recipe, generator(seed, "box"))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if (w, h) != (width, height):  # each side is rounded by up to half a pixel
        assert (w + 0.5) * (h + 0.5) >= area_min * height * width
        assert (w - 0.5) / (h + 0.5) <= aspect_max * (1 + 1e-9)
        assert (h - 0.5) / (w + 0.5) <= aspect_max * (1 + 1e-9)


def test_random_boxes_differ_in_size_and_place() -> None:
    boxes = {random_box(100, 100, AugmentRecipe(), generator(seed, "box")) for seed in range(200)}
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    assert len(boxes) >= 195
    assert min(areas) < 1_500
    assert max(areas) > 8_500


def test_the_golden_augmentation() -> None:
    """No resize is in it, so only the draws count. A run that resumes relies on them."""
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    outs = [augment(picture, recipe_of(crop="padded"), 5, epoch, "0123456789abcdef0123") for epoch in range(4)]
    assert sha256_hex(b"".join(out.tobytes() for out in outs)) == GOLDEN_SHA256


GOLDEN_SHA256 = "b2babf00d626f34415d5f3a258aaf7b1549ecc21d90c633b95c1a0b24f5e226b"


@pytest.mark.parametrize(
    ("kind", "fields", "problem"),
    [
        (AugmentRecipe, {"crop": "random"}, "crop"),
        (AugmentRecipe, {"area_min": 0}, "area_min"),
        (AugmentRecipe, {"area_min": 1.1}, "area_min"),
        (AugmentRecipe, {"aspect_max": 0.5}, "aspect_max"),
        (AugmentRecipe, {"size": 8, "padding": 9}, "padding 9 is more than size 8"),
        (AugmentRecipe, {"flips": True}, "did you mean 'flip'"),
        (
            StreamRecipe,
            {"batch_size": 10, "partitions": 4},
            r"partitions 4 does not divide batch_size 10; use \[1, 2, 5, 10\]",
        ),
        (StreamRecipe, {"window": 0}, "window"),
        (StreamRecipe, {"max_damaged": -1}, "max_damaged"),
    ],
)
def test_recipes_that_cannot_be_honoured(kind: Any, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        build(kind, fields)
