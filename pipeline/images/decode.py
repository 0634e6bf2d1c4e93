"""Bytes -> RGB pixels, or a typed reason why not. The format is decided by content, from an allow-list.

The contract: first frame; EXIF orientation applied once; alpha composed onto white; 16-bit scaled to 8; everything
else converted to RGB by Pillow. A cut file is an error: LOAD_TRUNCATED_IMAGES is never set.

Two decoders, one answer. A plain JPEG is decoded by simplejpeg, which is a quarter faster and gives Pillow's pixels,
since both carry libjpeg-turbo; it is strict: a stream of which libjpeg has anything to remark is not taken. All else,
and every JPEG with which something is wrong, goes to Pillow, whose verdict is the one that counts: bytes after the end
are accepted; a damaged stream that still gives all its pixels is accepted with those; one that ends early is not.

Size, format and orientation of a JPEG or PNG are parsed here, without its pixels. The parsers know the plain case only.
Whatever is odd (None) is left to Pillow, so both decoders always give the same.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

T = TypeVar("T")

MAX_PIXELS = 64_000_000  # a larger image is rejected before it is decoded
MAX_SIDE = 32_768
_UPRIGHT: dict[object, Image.Transpose] = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
_NAMES = _FORMATS | {"MPO": "jpg"}  # Pillow's name of a JPEG with more pictures behind the first
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 0x0112
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of a TIFF type
_SHORT = 3
# markers before the pixels that say nothing of their shape: Huffman and quantisation tables, restarts, comments, APPn
_PASSED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; all with Huffman codes
_APP1, _SCAN = 0xE1, 0xDA
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of each colour type
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


class ImageRejectedError(Exception):
    """An image that is left out. ``reason`` is one of a fixed set of words; ``detail`` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ImageFacts:
    """Width and height as seen (after orientation), in pixels, and the extension of the format."""

    width: int
    height: int
    format: str


def decode(data: bytes, on_size: Callable[[int], None] | None = None) -> tuple[NDArray[np.uint8], ImageFacts]:
    """uint8 (H, W, 3) and the facts. *on_size* gets the number of pixels before they are decoded.

    Raises ImageRejectedError: ``empty``, ``not-an-image``, ``too-large``, ``truncated``, ``undecodable``.
    """
    header = jpeg_header(data)
    if header:
        _refuse_too_large(header.width, header.height)
        if on_size:
            on_size(header.width * header.height)
        pixels = _decode_jpeg(data, header)
        if pixels is not None:
            return pixels, ImageFacts(pixels.shape[1], pixels.shape[0], "jpg")
    return _with_reasons(lambda: _decode(data, on_size), data)


def read_header(data: bytes) -> ImageFacts:
    """The facts without decoding: a file that is damaged behind its header passes. Raises ImageRejectedError."""
    header, kind = jpeg_header(data), "jpg"
    if header is None:
        header, kind = png_header(data), "png"
    if header is None:
        return _with_reasons(lambda: _read_header(data), data)
    _refuse_too_large(header.width, header.height)
    return ImageFacts(*_turned(header.width, header.height, header.orientation), kind)


def to_rgb(image: Image.Image) -> Image.Image:
    """One defined conversion for every mode."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image, dtype=np.int64)
        return Image.fromarray((np.clip(wide, 0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scaled = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
        return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
    return image.convert("RGB")


def _with_reasons(call: Callable[[], T], data: bytes) -> T:
    """The result of *call*; what Pillow raises becomes a typed reason."""
    if not data:
        raise ImageRejectedError("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata; bombs are refused just below
            return call()
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise ImageRejectedError("too-large" if bomb else "not-an-image") from None
    except (OSError, EOFError, SyntaxError) as error:
        cut = any(word in str(error).lower() for word in ("truncated", "unexpected end", "broken data stream"))
        raise ImageRejectedError("truncated" if cut else "undecodable", str(error)[:200]) from None
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, struct.error) as error:
        raise ImageRejectedError("undecodable", f"{type(error).__name__}: {error}"[:200]) from None


def _decode_jpeg(data: bytes, header: Header) -> NDArray[np.uint8] | None:
    """The pixels of a plain JPEG, upright; None when Pillow has to look at it."""
    if header.channels == 4:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, strict=True)
    except ValueError:
        return None
    turn = _UPRIGHT.get(header.orientation)
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn), dtype=np.uint8)


def _decode(data: bytes, on_size: Callable[[int], None] | None) -> tuple[NDArray[np.uint8], ImageFacts]:
    with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as image:
        _refuse_too_large(*image.size)
        if on_size:
            on_size(image.width * image.height)
        kind = _NAMES[image.format or ""]
        image.load()
        pixels = np.asarray(to_rgb(_upright(image)), dtype=np.uint8)
    return pixels, ImageFacts(pixels.shape[1], pixels.shape[0], kind)


def _read_header(data: bytes) -> ImageFacts:
    with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as image:
        _refuse_too_large(*image.size)
        kind = _NAMES[image.format or ""]
        # Pillow turns a TIFF itself, and has its size right from the start
        orientation = 1 if kind == "tiff" else image.getexif().get(ExifTags.Base.Orientation)
        return ImageFacts(*_turned(*image.size, orientation), kind)


def _refuse_too_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE or min(width, height) == 0:
        raise ImageRejectedError("too-large", f"{width} x {height}")


def _turned(width: int, height: int, orientation: object) -> tuple[int, int]:
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def _upright(image: Image.Image) -> Image.Image:
    """*image* as it is meant to be seen. Not by ImageOps.exif_transpose, which fails on odd EXIF."""
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


@dataclass(frozen=True)
class Header:
    """Width and height as stored, in pixels; the EXIF orientation, 1 when there is none; channels of a JPEG."""

    width: int
    height: int
    orientation: int
    channels: int


class _OddError(Exception):
    """The JPEG is not a plain one: Pillow has to look at it."""


def jpeg_header(data: bytes) -> Header | None:
    """The header of a plain JPEG: 8 bits, 1, 3 or 4 channels, baseline or progressive. None for all else."""
    try:
        return _plain_jpeg(data) if data.startswith(b"\xff\xd8\xff") else None
    except (_OddError, IndexError):
        return None


def _plain_jpeg(data: bytes) -> Header:
    size: tuple[int, int, int] | None = None
    exif: int | None = None
    turned_by_xmp = False
    marker, body, at = _segment(data, 2)
    while marker != _SCAN:
        if marker in _FRAMES:
            if size or at - body < 7 or data[body] != 8:
                raise _OddError
            size = (data[body + 3] << 8 | data[body + 4], data[body + 1] << 8 | data[body + 2], data[body + 5])
        elif marker not in _PASSED:
            raise _OddError
        elif marker == _APP1 and data.startswith(_EXIF, body):
            orientation = exif_orientation(data[body + len(_EXIF) : at])
            if exif is not None or orientation is None:
                raise _OddError
            exif = orientation
        elif marker == _APP1 and data.startswith(_XMP, body):
            turned_by_xmp = turned_by_xmp or b"Orientation" in data[body:at]
        marker, body, at = _segment(data, at)
    if not size or 0 in size or size[2] not in (1, 3, 4) or (turned_by_xmp and not exif):
        raise _OddError
    return Header(size[0], size[1], exif or 1, size[2])


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """The marker at byte *at*; the bytes at which its body starts and ends."""
    end = at + 2 + (data[at + 2] << 8 | data[at + 3])
    if data[at] != 0xFF or end < at + 4 or end > len(data):
        raise _OddError
    return data[at + 1], at + 4, end


def exif_orientation(tiff: bytes) -> int | None:
    """The orientation in an EXIF block, 0 when it holds none, None when the block is not in order."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        return None if order is None else _orientation(tiff, order)
    except (struct.error, KeyError):
        return None


def _orientation(tiff: bytes, order: str) -> int | None:
    start = struct.unpack_from(f"{order}I", tiff, 4)[0]
    count = struct.unpack_from(f"{order}H", tiff, start)[0]
    entry = struct.Struct(f"{order}HHI4s")
    entries = [entry.unpack_from(tiff, start + 2 + 12 * number) for number in range(count)]
    if any(first[0] >= second[0] for first, second in pairwise(entries)):
        return None  # twice, or not sorted
    for tag, kind, number, value in entries:
        num_bytes = _SIZES[kind] * number
        if num_bytes > 4 and struct.unpack(f"{order}I", value)[0] + num_bytes > len(tiff):
            return None  # Pillow reads no entry after one that points outside
        if tag == _ORIENTATION:
            upright: int = struct.unpack_from(f"{order}H", value)[0]
            return upright if (kind, number) == (_SHORT, 1) else None
    return 0


def png_header(data: bytes) -> Header | None:
    """The header of a PNG whose chunks are all there. None for all else, and where text may hold an orientation."""
    if len(data) < 33 or data[:16] != _PNG + b"\0\0\0\rIHDR":
        return None
    width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    is_intact = zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], "big")
    if not is_intact or depth not in _PNG_DEPTHS.get(colour, ()) or methods[:2] != [0, 0] or 0 in (width, height):
        return None
    orientation = _png_orientation(data)
    return None if orientation is None else Header(width, height, orientation or 1, 0)


def _png_orientation(data: bytes) -> int | None:
    at, end, orientation, pixels = 33, len(data) - 12, 0, False
    while at <= end:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND":
            return orientation if pixels else None
        if kind == b"IDAT":
            pixels = True
        elif kind == b"eXIf":
            parsed = None if orientation else exif_orientation(data[at + 8 : at + 8 + length])
            if parsed is None:
                return None
            orientation = parsed
        elif kind in _PNG_TEXTS and data.startswith((b"XML:com.adobe.xmp", b"Raw profile type exif"), at + 8):
            return None
        at += length + 12
    return None
