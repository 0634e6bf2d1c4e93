"""check_image: decode an image fully, and re-encode it, digest its pixels and sum them up, as the options say.

Re-encoding gives the same bytes each time. Resizing is by fast_image_resize (cykooz-resizer): antialiased, in integers,
and equal bit by bit whatever vector instructions the machine has; four to five times as fast as Pillow, whose pixels
differ by a few steps in places. JPEG is by libjpeg-turbo (simplejpeg): 4:2:0, accurate DCT, default Huffman tables. No
metadata is written. The bytes are those of the pinned versions in ``constraints.txt``.

The sums are exact; a dataset's mean and spread are made from them.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from pipeline.base.config import Config
from pipeline.base.errors import RefusedError
from pipeline.images.decode import MAX_PIXELS, MAX_SIDE, ImageFacts, ImageRejectedError, decode
from pipeline.images.transforms import Pixels, fast_resize, resizer

Triple = tuple[int, int, int]  # of red, green and blue

_WEBP_MAX_SIDE = 16_383  # of the format
_ROWS = 256  # 256 x 255 x 255 < 2^24: float32 holds every partial sum exactly, in whatever order it is formed
_ENOUGH_ROWS = 32
_BLOCK_VALUES = 200_000  # float32 values at a time: few calls, and no copy of a large image


class Reencode(Config):
    """Resize and encode anew; the default mode keeps the bytes as they are.

    ``short``: the short side becomes *size*; ``area``: the area becomes size x size, the aspect stays; ``square``: both
    sides become *size*. Images that are smaller already are not enlarged unless *enlarge*.
    """

    mode: Literal["keep", "short", "area", "square"] = "keep"
    size: int = Field(256, gt=0, description="pixels")
    enlarge: bool = False
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(95, ge=1, le=100, description="of jpg and webp")
    filter: Literal["bilinear", "bicubic", "lanczos", "box"] = "bicubic"

    @model_validator(mode="after")
    def _quality_counts(self) -> Self:
        if self.format == "png" and self.quality != 95:
            raise ValueError("png has no quality: leave it out")
        return self


@dataclass(frozen=True)
class CheckOptions:
    """What the sandbox does beyond decoding each image fully."""

    statistics: bool = False
    pixels_sha256: bool = False
    reencode: Reencode = field(default_factory=Reencode)


@dataclass(frozen=True)
class CheckResult:
    """A decoded image. ``facts`` are of the bytes that will be stored.

    ``sums`` and ``squares``: per channel (R, G, B), of value and value squared, over ``num_pixels`` pixels of the
    decoded original (see ``sampled_rows``); None unless asked for. ``pixels_sha256``: digest of height,
    width and RGB bytes, "" unless asked for. ``data``: the re-encoded bytes, None when the bytes are kept.
    """

    facts: ImageFacts
    num_pixels: int
    sums: tuple[int, int, int] | None = None
    squares: tuple[int, int, int] | None = None
    pixels_sha256: str = ""
    data: bytes | None = None


def check_image(data: bytes, options: CheckOptions, on_size: Callable[[int], None] | None = None) -> CheckResult:
    """Decode *data* fully and do what *options* ask. *on_size* as in ``decode``. Raises ImageRejectedError."""
    pixels, facts = decode(data, on_size)
    counted = sampled_rows(pixels)
    num_pixels = counted.shape[0] * counted.shape[1]
    sums, squares = channel_sums(counted) if options.statistics else (None, None)
    digest = pixels_digest(pixels) if options.pixels_sha256 else ""
    encoded = None
    if options.reencode.mode != "keep":
        encoded, facts = reencode(pixels, options.reencode)
    return CheckResult(facts, num_pixels, sums, squares, digest, encoded)


def reencode(pixels: Pixels, recipe: Reencode) -> tuple[bytes, ImageFacts]:
    """uint8 (H, W, 3) -> the file and its facts. The image is encoded anew even when its size stays.

    Raises ImageRejectedError ``too-large`` when the result would be; RefusedError when nothing here can resize.
    """
    refuse_if_impossible(recipe)
    height, width = pixels.shape[:2]
    new_width, new_height = target_size(width, height, recipe)
    longest = _WEBP_MAX_SIDE if recipe.format == "webp" else MAX_SIDE
    if new_width * new_height > MAX_PIXELS or max(new_width, new_height) > longest:
        raise ImageRejectedError("too-large", f"would become {new_width} x {new_height}")
    if (new_width, new_height) != (width, height):
        pixels = fast_resize(pixels, new_width, new_height, recipe.filter)
    return _encode(pixels, recipe), ImageFacts(new_width, new_height, recipe.format)


def target_size(width: int, height: int, recipe: Reencode) -> tuple[int, int]:
    """Width and height that an image of *width* x *height* pixels gets.

    Without ``enlarge`` no side grows; a small image in the mode ``square`` then gets its own short side twice.
    """
    size = recipe.size
    if recipe.mode == "square":
        side = size if recipe.enlarge else min(size, width, height)
        return side, side
    if recipe.mode == "keep":
        return width, height
    scale = size / min(width, height) if recipe.mode == "short" else size / math.sqrt(width * height)
    if scale >= 1 and not recipe.enlarge:
        return width, height
    least = size if recipe.mode == "short" else 1
    return max(least, round(width * scale)), max(least, round(height * scale))


def refuse_if_impossible(recipe: Reencode) -> None:
    """Raises RefusedError when *recipe* resizes and nothing here can."""
    if recipe.mode != "keep" and resizer is None:
        raise RefusedError("nothing here can resize", "pip install cykooz-resizer; it needs Rust on this machine")


def _encode(pixels: Pixels, recipe: Reencode) -> bytes:
    if recipe.format == "jpg":
        data: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=recipe.quality, colorsubsampling="420", fastdct=False
        )
        return data
    buffer, image = io.BytesIO(), Image.fromarray(pixels)
    if recipe.format == "webp":
        image.save(buffer, "WEBP", quality=recipe.quality, method=4)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def sampled_rows(pixels: Pixels) -> Pixels:
    """Every n-th row of *pixels*, at least 32 of them where there are so many: enough for a mean of many images.

    Sums over all rows would take a quarter of the time that decoding takes.
    """
    return pixels[:: max(1, pixels.shape[0] // _ENOUGH_ROWS)]


def channel_sums(pixels: Pixels) -> tuple[Triple, Triple]:
    """Per channel (R, G, B) of uint8 (H, W, 3): the sum of the values, and of their squares. Exact.

    By float32 and BLAS, which is what numpy has vectorised for this; no rounding can happen (see ``_ROWS``), so the
    result is the same on every machine.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * 3)
    step = max(1, min(_ROWS, _BLOCK_VALUES // (width * 3)))
    ones = np.ones(step, dtype=np.float32)
    sums, squares = np.zeros(width * 3), np.zeros(width * 3)
    for start in range(0, height, step):
        block = rows[start : start + step].astype(np.float32)
        some = ones[: len(block)]
        sums += some @ block
        squares += some @ np.multiply(block, block, out=block)
    return _per_channel(sums), _per_channel(squares)


def _per_channel(columns: NDArray[np.float64]) -> Triple:
    red, green, blue = columns.reshape(-1, 3).sum(axis=0).tolist()
    return int(red), int(green), int(blue)


def pixels_digest(pixels: Pixels) -> str:
    """sha256, in hex, of the line ``<height> <width>`` and the RGB bytes: equal pixels, equal digest."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{height} {width}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
