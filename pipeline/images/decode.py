"""Bytes -> RGB pixels, or a typed reason why not. The format is decided by content, from an allow-list.

The contract: first frame; EXIF orientation applied once; alpha composed onto white; 16-bit scaled to 8; everything
else converted to RGB by Pillow. A cut file is an error: LOAD_TRUNCATED_IMAGES is never set.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

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


def decode(data: bytes) -> tuple[NDArray[np.uint8], ImageFacts]:
    """uint8 (H, W, 3) and the facts. Raises ImageRejectedError.

    Reasons: ``empty``, ``not-an-image``, ``too-large``, ``truncated``, ``undecodable``.
    """
    if not data:
        raise ImageRejectedError("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata; bombs are refused just below
            return _decode(data)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise ImageRejectedError("too-large" if bomb else "not-an-image") from None
    except (OSError, EOFError, SyntaxError) as error:
        cut = any(word in str(error).lower() for word in ("truncated", "unexpected end", "broken data stream"))
        raise ImageRejectedError("truncated" if cut else "undecodable", str(error)[:200]) from None
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, struct.error) as error:
        raise ImageRejectedError("undecodable", f"{type(error).__name__}: {error}"[:200]) from None


def _decode(data: bytes) -> tuple[NDArray[np.uint8], ImageFacts]:
    with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as image:
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE or min(width, height) == 0:
            raise ImageRejectedError("too-large", f"{width} x {height}")
        kind = _FORMATS[image.format or ""]
        image.load()
        pixels = np.asarray(to_rgb(_upright(image)), dtype=np.uint8)
    return pixels, ImageFacts(pixels.shape[1], pixels.shape[0], kind)


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
