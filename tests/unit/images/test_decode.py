"""The decoding contract, against arrays written down here: what each kind of image becomes as RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.images.decode import ImageFacts, decode, to_rgb
from tests.support.pictures import bmp, encoded, noise, png, png_chunk


def pixels_of(data: bytes) -> list[Any]:
    """The decoded pixels as nested lists."""
    pixels, _ = decode(data)
    assert pixels.dtype == np.uint8
    return pixels.tolist()


@pytest.mark.parametrize(
    ("format_name", "extension", "options"),
    [
        ("PNG", "png", {}),
        ("BMP", "bmp", {}),
        ("TIFF", "tiff", {}),
        ("TIFF", "tiff", {"compression": "tiff_lzw"}),
        ("WEBP", "webp", {"lossless": True}),
    ],
)
def test_lossless_formats_give_their_pixels_back(format_name: str, extension: str, options: dict[str, Any]) -> None:
    wanted = noise(5, 7)
    pixels, facts = decode(encoded(Image.fromarray(wanted), format_name, **options))
    np.testing.assert_array_equal(pixels, wanted)
    assert facts == ImageFacts(width=7, height=5, format=extension)


def test_a_jpeg_is_close_to_what_was_encoded() -> None:
    wanted = np.full((16, 24, 3), (200, 100, 50), dtype=np.uint8)
    pixels, facts = decode(encoded(Image.fromarray(wanted), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - wanted).max() <= 3
    assert facts == ImageFacts(width=24, height=16, format="jpg")


def test_the_format_is_decided_by_content_whatever_comes_first() -> None:
    assert decode(bmp(noise(3, 3)))[1].format == "bmp"
    assert decode(encoded(Image.fromarray(noise(3, 3)), "GIF"))[1].format == "gif"


def test_cmyk() -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    data = encoded(Image.frombytes("CMYK", (5, 1), inks.tobytes()), "TIFF")
    assert pixels_of(data) == [[[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]]


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    white, black = Image.new("CMYK", (16, 16), (0, 0, 0, 0)), Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    assert decode(encoded(white, "JPEG", quality=95))[0].min() >= 250
    assert decode(encoded(black, "JPEG", quality=95))[0].max() <= 5


def test_16_bit_is_scaled_not_clipped() -> None:
    wide = np.array([[0, 255, 256, 32_768, 65_535]], dtype=np.uint16)
    assert pixels_of(png(wide)) == [[[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_32_bit_integers_are_read_as_16_bit() -> None:
    wide = np.array([[-5, 0, 32_768, 65_535, 10_000_000]], dtype=np.int32)
    data = encoded(Image.fromarray(wide), "TIFF")
    assert pixels_of(data) == [[[0] * 3, [0] * 3, [128] * 3, [255] * 3, [255] * 3]]


def palette_image() -> Image.Image:
    """Two pixels of a palette: red, and green."""
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putdata([0, 1])
    image.putpalette([255, 0, 0, 0, 255, 0])
    return image


def test_palette() -> None:
    assert pixels_of(encoded(palette_image(), "PNG")) == [[[255, 0, 0], [0, 255, 0]]]


def test_palette_with_transparency_is_put_on_white() -> None:
    assert pixels_of(encoded(palette_image(), "PNG", transparency=1)) == [[[255, 0, 0], [255, 255, 255]]]
    half = encoded(palette_image(), "PNG", transparency=bytes([255, 51]))  # 51 is a fifth
    assert pixels_of(half) == [[[255, 0, 0], [204, 255, 204]]]


def test_rgb_with_a_transparent_colour_is_put_on_white() -> None:
    data = png(np.array([[[9, 9, 9], [1, 2, 3]]], dtype=np.uint8), transparency=(9, 9, 9))
    assert pixels_of(data) == [[[255, 255, 255], [1, 2, 3]]]


def test_grey_with_a_transparent_value_is_put_on_white() -> None:
    data = png(np.array([[9, 77]], dtype=np.uint8), transparency=9)
    assert pixels_of(data) == [[[255] * 3, [77] * 3]]


def test_one_bit() -> None:
    image = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    for format_name in ("PNG", "TIFF"):
        assert pixels_of(encoded(image, format_name)) == [[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]]


def test_grey() -> None:
    assert pixels_of(png(np.array([[0, 77, 255]], dtype=np.uint8))) == [[[0] * 3, [77] * 3, [255] * 3]]


def float_tiff(values: list[list[float]]) -> bytes:
    """A one-channel TIFF of 32-bit floats."""
    return encoded(Image.fromarray(np.array(values, dtype=np.float32)), "TIFF")


def test_float_tiff_up_to_one_is_stretched() -> None:
    assert pixels_of(float_tiff([[0.0, 0.2, 1.0, -1.0]])) == [[[0] * 3, [51] * 3, [255] * 3, [0] * 3]]


def test_float_tiff_above_one_is_taken_as_it_is() -> None:
    assert pixels_of(float_tiff([[0.0, 100.4, 254.6, 300.0]])) == [[[0] * 3, [100] * 3, [255] * 3, [255] * 3]]


def test_float_tiff_with_nan() -> None:
    assert pixels_of(float_tiff([[float("nan"), 100.0]])) == [[[0] * 3, [100] * 3]]


def test_alpha_is_put_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    assert pixels_of(png(rgba)) == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]


def test_grey_with_alpha_is_put_on_white() -> None:
    image = Image.frombytes("LA", (3, 1), bytes([10, 255, 10, 0, 0, 51]))
    assert pixels_of(encoded(image, "PNG")) == [[[10] * 3, [255] * 3, [204] * 3]]


def test_rgb_is_passed_on_as_it_is() -> None:
    image = Image.fromarray(noise(2, 2))
    assert to_rgb(image) is image


UPRIGHT = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]], np.uint8)
STORED = {  # orientation -> how UPRIGHT lies in the file, from the definition of the tag
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT.transpose(1, 0, 2)[::-1],  # row 0 of the file is the right side of the scene
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}


def with_orientation(orientation: int, stored: np.ndarray, format_name: str = "PNG", **tags: Any) -> bytes:
    """*stored* with an EXIF block that holds the orientation and other *tags* by number."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number, value in tags.items():
        exif[int(number.removeprefix("tag_"), 16)] = value
    return encoded(Image.fromarray(np.ascontiguousarray(stored)), format_name, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, format_name: str) -> None:
    pixels, facts = decode(with_orientation(orientation, STORED[orientation], format_name))
    np.testing.assert_array_equal(pixels, UPRIGHT)
    assert (facts.width, facts.height) == (3, 2)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    np.testing.assert_array_equal(decode(with_orientation(orientation, UPRIGHT))[0], UPRIGHT)


def test_an_odd_exif_tag_does_not_cost_the_image() -> None:
    """Pillow's exif_transpose writes all tags anew and fails with struct.error when the type of one is wrong."""
    good = with_orientation(6, STORED[6], tag_011a=72.0)
    entry = bytes.fromhex("011a0005")  # XResolution as a rational ...
    assert good.count(entry) == 1
    odd = good.replace(entry, bytes.fromhex("011a0002"))  # ... and as text
    np.testing.assert_array_equal(decode(_with_checksums_mended(odd))[0], UPRIGHT)


def _with_checksums_mended(data: bytes) -> bytes:
    """A PNG whose chunks were edited, with checksums that fit."""
    out, at = data[:8], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        out += png_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue", "lime")]
    for format_name, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
        assert pixels_of(data) == [[[255, 0, 0]] * 4] * 3, format_name


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_trailing_junk_is_accepted(format_name: str) -> None:
    data = encoded(Image.fromarray(noise(6, 5)), format_name)
    np.testing.assert_array_equal(decode(data + b"<html>" * 100)[0], decode(data)[0])


def test_truncated_images_are_never_allowed() -> None:
    decode(png(noise(2, 2)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
