"""What is asked of a checked image, and what is learned of it: the words between a stage and the sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.base.config import Config
from pipeline.images.decode import ImageFacts


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
class Checked:
    """A decoded image. ``facts`` are of the bytes that will be stored.

    ``sums`` and ``squares``: per channel (R, G, B), of value and value squared, over ``num_pixels`` pixels of the
    decoded original (see ``statistics.sampled_rows``); None unless asked for. ``pixels_sha256``: digest of height,
    width and RGB bytes, "" unless asked for. ``data``: the re-encoded bytes, None when the bytes are kept.
    """

    facts: ImageFacts
    num_pixels: int
    sums: tuple[int, int, int] | None = None
    squares: tuple[int, int, int] | None = None
    pixels_sha256: str = ""
    data: bytes | None = None
