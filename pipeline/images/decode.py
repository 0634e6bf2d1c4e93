"""Bytes -> RGB pixels, or a typed reason why not. The format is decided by content, from an allow-list.

The contract: first frame; EXIF orientation applied once; alpha composed onto white; 16-bit scaled to 8; everything
else converted to RGB by Pillow. A cut file is an error: LOAD_TRUNCATED_IMAGES is never set.

Two ways, one answer. A plain JPEG is decoded by simplejpeg, which is a quarter faster and gives Pillow's pixels, since
both carry libjpeg-turbo; it is strict: a stream of which libjpeg has anything to remark is not taken. All else, and
every JPEG with which something is wrong, goes to Pillow, whose verdict is the one that counts: bytes after the end are
accepted, a damaged stream that still gives all its pixels is accepted with those pixels, one that ends early is not.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.images.header import Header, jpeg_header, png_header

T = TypeVar("T")
MAX_PIXELS = 64_000_000
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
_NAMES = _FORMATS | {"MPO": "jpg"}  # how Pillow calls a JPEG with more pictures behind the first


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
    """uint8 (H, W, 3) and the facts. *on_size* is told the number of pixels before they are decoded.

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


def _with_reasons(call: Callable[[], T], data: bytes) -> T:
    """What *call* returns; what Pillow raises becomes a typed reason."""
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
