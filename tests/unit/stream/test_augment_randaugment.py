"""RandAugment: each operation against fixed arrays or closed forms, its arguments by magnitude, and its draws."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipeline.base.digests import sha256_hex
from pipeline.base.seeds import generator
from pipeline.stream import augment as ops
from pipeline.stream.augment import OPERATIONS, randaugment
from pipeline.stream.recipe import RandAugmentRecipe
from tests.support.pictures import noise

PICTURE = noise(20, 30)
RAMP = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)  # pixel v has the value v in each channel
MAGNITUDES = (0, 10, 15, 20)
ORDER = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness"),
    *("Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd"),
)


class Drawn(np.random.Generator):
    """Gives what it is told, so that an operation's one draw is known."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.Philox(0))
        self.value = value

    def random(self, *_: Any, **__: Any) -> Any:
        return self.value

    def integers(self, high: int, *_: Any, **__: Any) -> Any:
        return int(self.value * high)


def apply(name: str, pixels: NDArray[np.uint8], magnitude: float, value: float = 0.0) -> NDArray[np.uint8]:
    return OPERATIONS[name](pixels, magnitude / 10, Drawn(value))


def values(pixels: NDArray[np.uint8]) -> list[int]:
    """What each of 0..255 became on the ramp."""
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].reshape(-1).tolist()


def placed(pixels: NDArray[np.uint8], source: Any) -> NDArray[np.uint8]:
    """Pixel (y, x) from *source*(y, x), which gives floats; nearest; 128 from outside."""
    height, width = pixels.shape[:2]
    out = np.full_like(pixels, 128)
    for y in range(height):
        for x in range(width):
            row, column = (math.floor(value + 0.5) for value in source(y, x))
            if 0 <= row < height and 0 <= column < width:
                out[y, x] = pixels[row, column]
    return out


def test_the_operations_and_their_order_are_fixed() -> None:
    assert tuple(OPERATIONS) == ORDER


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_every_operation_keeps_shape_and_kind_and_its_input(name: str, magnitude: int) -> None:
    for shape in ((20, 30), (224, 224), (3, 3), (1, 1), (1, 7), (2, 5)):
        picture = noise(*shape)
        before = picture.copy()
        out = OPERATIONS[name](picture, magnitude / 10, generator(0, name))
        assert out.shape == picture.shape
        assert out.dtype == np.uint8
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(picture, before)
        np.testing.assert_array_equal(OPERATIONS[name](picture, magnitude / 10, generator(0, name)), out)


def test_invert_twice_is_nothing() -> None:
    assert values(ops.invert(RAMP)) == list(range(255, -1, -1))
    np.testing.assert_array_equal(ops.invert(ops.invert(PICTURE)), PICTURE)


def test_equalize_is_pillows() -> None:
    dull = PICTURE // 4 + 50
    wanted = np.asarray(ImageOps.equalize(Image.fromarray(dull)))
    np.testing.assert_array_equal(apply("Equalize", dull, 10), wanted)
    assert np.ptp(wanted) > 200 > np.ptp(dull)
    np.testing.assert_array_equal(ops.equalize(np.full((4, 4, 3), 7, np.uint8)), np.full((4, 4, 3), 7, np.uint8))


def test_autocontrast_stretches_each_channel_and_leaves_a_flat_one() -> None:
    picture = np.array([[[50, 9, 0], [100, 9, 255]], [[75, 9, 3], [60, 9, 200]]], dtype=np.uint8)
    wanted = np.array([[[0, 9, 0], [255, 9, 255]], [[127, 9, 3], [51, 9, 200]]], dtype=np.uint8)
    np.testing.assert_array_equal(apply("AutoContrast", picture, 10), wanted)
    dull = PICTURE // 3 + 40
    pillow = np.asarray(ImageOps.autocontrast(Image.fromarray(dull))).astype(int)
    assert np.abs(ops.autocontrast(dull).astype(int) - pillow).max() <= 1  # Pillow cuts off in float


@pytest.mark.parametrize(("magnitude", "mask"), [(0, 0x80), (5, 0xC0), (10, 0xF0), (15, 0xFC), (20, 0xFF), (30, 0xFF)])
def test_posterize_keeps_upper_bits(magnitude: int, mask: int) -> None:
    assert values(apply("Posterize", RAMP, magnitude)) == [value & mask for value in range(256)]


@pytest.mark.parametrize(("magnitude", "threshold"), [(0, 0), (5, 128), (10, 0), (15, 128), (19, 230), (20, 0)])
def test_solarize_turns_what_is_at_or_above_a_threshold_that_wraps_around(magnitude: int, threshold: int) -> None:
    wanted = [value if value < threshold else 255 - value for value in range(256)]
    assert values(apply("Solarize", RAMP, magnitude)) == wanted


@pytest.mark.parametrize(("magnitude", "addition"), [(0, 0), (10, 110), (15, 165), (20, 220)])
def test_solarize_add_lifts_the_dark_half(magnitude: int, addition: int) -> None:
    wanted = [min(value + addition, 255) if value < 128 else value for value in range(256)]
    assert values(apply("SolarizeAdd", RAMP, magnitude)) == wanted


@pytest.mark.parametrize(("magnitude", "factor"), [(0, 0.1), (5, 1.0), (10, 1.9), (15, 2.8), (20, 3.7)])
def test_enhancements_scale_with_the_magnitude(magnitude: int, factor: float) -> None:
    np.testing.assert_allclose(
        values(apply("Brightness", RAMP, magnitude)), np.minimum(np.arange(256) * factor, 255), atol=1
    )
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        operation = getattr(ops, name.lower())
        np.testing.assert_array_equal(apply(name, PICTURE, magnitude), operation(PICTURE, magnitude / 10 * 1.8 + 0.1))
        if magnitude == 5:
            np.testing.assert_array_equal(apply(name, PICTURE, magnitude), PICTURE)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 1.0, 1.9, 3.7])
def test_colour_and_sharpness_are_pillows_but_for_rounding(factor: float) -> None:
    """Pillow rounds its grey and its smooth picture, here both are cut off: a step, times the blend's."""
    picture, allowed = noise(40, 40), 1 + abs(1 - factor)
    for ours, pillows in ((ops.color, ImageEnhance.Color), (ops.sharpness, ImageEnhance.Sharpness)):
        wanted = np.asarray(pillows(Image.fromarray(picture)).enhance(factor)).astype(int)
        assert np.abs(ours(picture, factor).astype(int) - wanted).max() <= allowed


def test_colour_zero_is_grey() -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]]], dtype=np.uint8)
    grey = ops.color(primaries, 0.0)
    assert (grey == grey[..., :1]).all()
    assert grey[0, :, 0].tolist() == [76, 149, 29, 255, 18]


def test_sharpness_zero_is_smooth_inside_and_the_border_stays() -> None:
    picture = np.zeros((5, 5, 3), dtype=np.uint8)
    picture[2, 2] = 130
    picture[0, 0] = 26
    wanted = np.zeros((5, 5), dtype=np.uint8)
    wanted[1:4, 1:4] = 10
    wanted[2, 2] = 50
    wanted[1, 1] = 12
    wanted[0, 0] = 26
    np.testing.assert_array_equal(ops.sharpness(picture, 0.0), wanted[..., None].repeat(3, axis=2))


def test_contrast_pivots_on_a_grey_that_the_size_gives() -> None:
    for side, grey in ((16, 1), (224, 196), (300, 255)):
        picture = np.full((side, side, 3), 100, dtype=np.uint8)
        assert (ops.contrast(picture, 0.0) == grey).all()
        assert (ops.contrast(picture, 0.5) == int(grey + 0.5 * (100 - grey))).all()
        assert (ops.contrast(picture, 2.0) == max(0, 200 - grey)).all()


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_geometry_at_magnitude_zero_is_nothing(name: str) -> None:
    for value in (0.0, 0.9):
        np.testing.assert_array_equal(apply(name, PICTURE, 0, value), PICTURE)


@pytest.mark.parametrize(("name", "magnitude"), [("TranslateX", 0.7), ("TranslateX", 10), ("TranslateY", 1.2)])
def test_translations_go_left_and_up_and_the_other_way_when_so_drawn(name: str, magnitude: float) -> None:
    distance = round(magnitude * 10)
    across = name == "TranslateX"
    for value, signed in ((0.0, distance), (0.9, -distance)):
        wanted = placed(PICTURE, lambda y, x, s=signed: (y, x + s) if across else (y + s, x))
        np.testing.assert_array_equal(apply(name, PICTURE, magnitude, value), wanted)


@pytest.mark.parametrize("magnitude", [3, 10, 15, 20])
def test_shears_hold_the_first_row_or_column(magnitude: int) -> None:
    picture = noise(40, 30)
    for value, sign in ((0.0, 1), (0.9, -1)):
        level = sign * magnitude * 0.03
        sheared = apply("ShearX", picture, magnitude, value)
        np.testing.assert_array_equal(sheared[0], picture[0])
        wanted = placed(picture, lambda y, x, k=level: (y, x + k * y + 1e-6))  # halves go up, in fixed point too
        lower = placed(picture, lambda y, x, k=level: (y, x + k * y - 1e-6))
        assert ((sheared == wanted) | (sheared == lower)).all()
        turned = apply("ShearY", picture.transpose(1, 0, 2).copy(), magnitude, value)
        tied = (wanted != lower).any(axis=2)
        assert (turned.transpose(1, 0, 2)[~tied] == wanted[~tied]).all()


def test_rotations() -> None:
    square = noise(21, 21)
    np.testing.assert_array_equal(ops.rotate(square, 90), np.rot90(square))  # against the clock
    np.testing.assert_array_equal(ops.rotate(square, 180), square[::-1, ::-1])
    for value, angle in ((0.0, 30), (0.9, -30)):
        turned = apply("Rotate", square, 10, value)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        wanted = placed(
            square, lambda y, x, c=c, s=s: (10 + s * (x - 10) + c * (y - 10), 10 + c * (x - 10) - s * (y - 10))
        )
        assert (turned == wanted).all(axis=2).mean() > 0.99  # where two are equally near, either may come
        assert (turned[0, 0] == 128).all()
        np.testing.assert_array_equal(turned[10, 10], square[10, 10])


@pytest.mark.parametrize(("magnitude", "reach"), [(0, 0), (10, 40), (15, 60), (20, 80)])
def test_cutout_is_a_grey_box_about_the_place_that_was_drawn(magnitude: int, reach: int) -> None:
    picture = noise(224, 200) // 2  # nothing of it is 128
    for value in (0.0, 0.5, 0.999):
        row, column = int(value * 224), int(value * 200)
        wanted = picture.copy()
        wanted[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = 128
        np.testing.assert_array_equal(apply("Cutout", picture, magnitude, value), wanted)
    assert (apply("Cutout", picture, 10, 0.5) == 128).all(axis=2).sum() == 80 * 80


def test_what_a_layer_does_is_drawn_evenly() -> None:
    """A picture on which every operation leaves its own mark; 1,600 pictures of one layer."""
    picture = noise(24, 24) // 2 + 20
    seen: Counter[str] = Counter()
    marks = {}
    for name in ORDER:
        if name == "Cutout":
            places = [(row, column) for row in range(24) for column in range(24)]
            marks |= {ops.cutout(picture, 8, *place).tobytes(): name for place in places}
        else:
            marks |= {apply(name, picture, 2, value).tobytes(): name for value in (0.0, 0.9)}
    for at in range(1600):
        out = randaugment(picture, RandAugmentRecipe(layers=1, magnitude=2), generator(at, "layer"))
        seen[marks[out.tobytes()]] += 1
    assert set(seen) == set(ORDER)
    assert 60 <= min(seen.values()) <= max(seen.values()) <= 140  # four standard deviations; the draws are fixed


def test_layers_follow_one_another_and_none_is_the_picture_itself() -> None:
    assert randaugment(PICTURE, RandAugmentRecipe(layers=0), generator(0)) is PICTURE
    draw = generator(1, "two")
    step = randaugment(PICTURE, RandAugmentRecipe(layers=1, magnitude=15), draw)
    step = randaugment(step, RandAugmentRecipe(layers=1, magnitude=15), draw)
    both = randaugment(PICTURE, RandAugmentRecipe(layers=2, magnitude=15), generator(1, "two"))
    np.testing.assert_array_equal(both, step)


def test_the_golden_pictures() -> None:
    """The draws and the pixels of every preset of AugReg. A run that resumes relies on them."""
    outs = [
        randaugment(noise(32, 32), RandAugmentRecipe(layers=2, magnitude=magnitude), generator(at, "golden"))
        for magnitude in MAGNITUDES
        for at in range(40)
    ]
    assert sha256_hex(b"".join(out.tobytes() for out in outs)) == GOLDEN_SHA256


GOLDEN_SHA256 = "9fa5fa20f79f90e7f50e029455812346c6ccff806313af4e249920de3ca5e1ec"
