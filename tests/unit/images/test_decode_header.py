"""Sizes from headers: the same facts as decoding gives, the same reasons, and no pixel touched."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from pipeline.images import decode as module
from pipeline.images.decode import (
    ImageFacts,
    ImageRejectedError,
    decode,
    exif_orientation,
    jpeg_header,
    png_header,
    read_header,
)
from tests.support.jpegs import exif, smooth
from tests.support.pictures import encoded, noise, png, png_chunk, png_that_claims


def reason_of(data: bytes) -> str:
    with pytest.raises(ImageRejectedError) as caught:
        read_header(data)
    return caught.value.reason


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_every_format(format_name: str) -> None:
    data = encoded(smooth(11, 23), format_name)
    assert read_header(data) == decode(data)[1]
    assert (read_header(data).width, read_header(data).height) == (23, 11)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(format_name: str, orientation: int) -> None:
    data = encoded(smooth(11, 23), format_name, exif=exif(orientation))
    assert read_header(data) == decode(data)[1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_is_read_without_pillow(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new(mode, (9, 4))
    data = encoded(image, "PNG")
    monkeypatch.setattr("PIL.Image.open", None)
    assert read_header(data) == ImageFacts(9, 4, "png")


def test_jpeg_is_read_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encoded(smooth(9, 4), "JPEG", exif=exif(6)), encoded(Image.new("CMYK", (9, 4)), "JPEG")]
    files.append(encoded(smooth(4, 9), "JPEG", progressive=True))
    monkeypatch.setattr("PIL.Image.open", None)
    assert [read_header(data) for data in files] == [ImageFacts(9, 4, "jpg")] * 3


def test_no_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", forbidden)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", forbidden)
    for format_name in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
        read_header(encoded(smooth(11, 23), format_name))


def test_reasons() -> None:
    assert reason_of(b"") == "empty"
    assert reason_of(b"x") == "not-an-image"
    assert reason_of(b"<!DOCTYPE html><html></html>") == "not-an-image"
    assert reason_of(encoded(Image.fromarray(noise(8, 8)), "PPM")) == "not-an-image"
    for width, height in [(2**31 - 1, 1), (2**31, 1), (1, 65_535), (8_001, 8_000)]:
        assert reason_of(png_that_claims(width, height)) == "too-large"
    assert reason_of(encoded(smooth(40, 40), "JPEG")[:100]) in {"not-an-image", "truncated"}


def test_a_png_that_is_cut_is_no_plain_png() -> None:
    data = png(noise(40, 40))
    assert png_header(data) is not None
    for length in (0, 8, 20, 33, 60, len(data) // 2, len(data) - 12, len(data) - 1):
        assert png_header(data[:length]) is None


def test_an_orientation_in_the_text_of_a_png_is_left_to_pillow() -> None:
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    data = png(noise(3, 8))
    data = data[:33] + png_chunk(b"iTXt", xmp) + data[33:]
    assert png_header(data) is None
    assert read_header(data) == decode(data)[1] == ImageFacts(3, 8, "png")


def test_an_orientation_in_xmp_counts_only_where_exif_has_none() -> None:
    xmp = b'<x tiff:Orientation="6"/>'
    for options, wanted in (({}, (3, 8)), ({"exif": exif(1)}, (8, 3))):
        data = encoded(smooth(3, 8), "JPEG", xmp=xmp, **options)
        assert (read_header(data).width, read_header(data).height) == wanted
        assert decode(data)[1] == read_header(data)


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + count.to_bytes(4, "big") + value.ljust(4, b"\0")


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([], 0),
        ([entry(0x0112, 3, 1, b"\0\6")], 6),
        ([entry(0x010E, 2, 3, b"hi\0"), entry(0x0112, 3, 1, b"\0\3")], 3),
        ([entry(0x0112, 4, 1, b"\0\0\0\6")], None),  # not a short
        ([entry(0x0112, 3, 2, b"\0\6\0\6")], None),
        ([entry(0x0112, 3, 1, b"\0\6"), entry(0x0112, 3, 1, b"\0\3")], None),
        ([entry(0x010E, 2, 900, b"\0\0\0\x08"), entry(0x0112, 3, 1, b"\0\6")], None),  # points outside
        ([entry(0x010E, 99, 1, b"")], None),
    ],
)
def test_exif(entries: list[bytes], wanted: int | None) -> None:
    block = b"MM\0*\0\0\0\x08" + len(entries).to_bytes(2, "big") + b"".join(entries) + bytes(4)
    assert exif_orientation(block) == wanted


@pytest.mark.parametrize("block", [b"", b"MM", b"II*\0", b"XX*\0\x08\0\0\0\0\0", b"MM\0*\xff\xff\xff\xff"])
def test_exif_that_is_none(block: bytes) -> None:
    assert exif_orientation(block) is None


def test_any_cut_of_a_jpeg_header_is_read_without_an_error() -> None:
    data: Any = encoded(smooth(11, 23), "JPEG", exif=exif(6))
    scan = data.index(b"\xff\xda")
    assert all(jpeg_header(data[:length]) is None for length in range(scan + 1))
