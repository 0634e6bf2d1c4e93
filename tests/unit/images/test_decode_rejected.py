"""What is no image, or too much of one: refused with a typed reason, before any memory is taken for it."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import MAX_SIDE, ImageRejectedError, decode
from tests.support.pictures import encoded, noise, png, png_chunk, png_that_claims

REASONS = {"empty", "not-an-image", "too-large", "truncated", "undecodable"}


def reason_of(data: bytes) -> str:
    """Why *data* is rejected."""
    with pytest.raises(ImageRejectedError) as caught:
        decode(data)
    return caught.value.reason


def test_nothing_at_all() -> None:
    assert reason_of(b"") == "empty"


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\xff",
        b"\0" * 512,
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
        encoded(Image.fromarray(noise(4, 4)), "PPM"),  # Pillow reads it; the allow-list has no such format
        encoded(Image.fromarray(noise(16, 16)), "ICO"),
        encoded(Image.fromarray(noise(4, 4)), "TGA"),
    ],
    ids=["one-byte", "ff", "zeros", "html", "pdf", "eps", "svg", "ppm", "ico", "tga"],
)
def test_what_is_not_an_image_of_the_allowed_formats(data: bytes) -> None:
    assert reason_of(data) == "not-an-image"


def test_an_eps_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", forbidden)
    image = encoded(Image.fromarray(noise(8, 8)), "EPS")
    assert reason_of(image) == "not-an-image"


@pytest.mark.parametrize(
    ("format_name", "reason"),
    # libwebp takes the file whole, and does not say that it is too short
    [("JPEG", "truncated"), ("PNG", "truncated"), ("WEBP", "undecodable"), ("BMP", "truncated")],
)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 0.9, 0.99])
def test_a_cut_file_is_rejected(format_name: str, reason: str, share: float) -> None:
    data = encoded(Image.fromarray(noise(40, 40)), format_name)
    assert reason_of(data[: int(share * len(data))]) == reason


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_header_alone_is_rejected(format_name: str) -> None:
    """Twelve bytes of it: only of a JPEG are they enough to know what it was."""
    data = encoded(Image.fromarray(noise(40, 40)), format_name)
    assert reason_of(data[:12]) == ("truncated" if format_name == "JPEG" else "not-an-image")


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (2**31, 1),
        (2**32 - 1, 2**32 - 1),
        (1, 65_535),
        (65_535, 1),
        (MAX_SIDE + 1, 1),
        (8_001, 8_000),  # just over 64 MP
        (32_768, 32_768),
    ],
)
def test_a_pixel_bomb_is_refused_before_it_is_loaded(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("pixels were allocated")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_prepare", forbidden)
    monkeypatch.setattr("PIL.Image.core.new", forbidden)
    assert reason_of(png_that_claims(width, height)) == "too-large"


def test_the_guard_of_the_bomb_test_sees_an_image_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("pixels were allocated")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_prepare", forbidden)
    with pytest.raises(AssertionError, match="allocated"):
        decode(png(noise(2, 2)))


def test_the_longest_side_that_is_allowed() -> None:
    pixels, facts = decode(png(np.zeros((1, MAX_SIDE, 3), dtype=np.uint8)))
    assert pixels.shape == (1, MAX_SIDE, 3)
    assert facts.width == MAX_SIDE


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels(width: int, height: int) -> None:
    assert reason_of(png_that_claims(width, height)) == "not-an-image"


def test_a_metadata_bomb_is_refused() -> None:
    data = png(noise(4, 4))
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    assert reason_of(data[:33] + bomb + data[33:]) == "undecodable"


def test_any_damage_gives_pixels_or_a_reason_and_nothing_else() -> None:
    """4,000 damaged files. What escapes as another error would end the shard, not the image."""
    draw = random.Random(20)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    picture = Image.fromarray(noise(12, 10))
    files = [encoded(picture, name, exif=exif) for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [encoded(picture, name) for name in ("GIF", "BMP")]
    seen = set()
    for _ in range(4_000):
        data = bytearray(draw.choice(files))
        for _ in range(draw.choice([1, 1, 2, 4])):
            data[draw.randrange(min(len(data), draw.choice([64, 200, 10_000])))] = draw.choice([0, 255, 1, 127, 64])
        try:
            pixels, facts = decode(bytes(data))
        except ImageRejectedError as error:
            seen.add(error.reason)
        else:
            assert pixels.shape == (facts.height, facts.width, 3)
    assert seen <= REASONS
    assert {"not-an-image", "truncated", "undecodable"} <= seen
