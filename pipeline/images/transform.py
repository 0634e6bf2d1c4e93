"""The evaluation transform: one deterministic way from any image to the network's square input."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.base.config import Config
from pipeline.images.resize import Pixels, centre_crop, resize, resize_short_side


class EvaluationTransform(Config):
    """Resize, then centre crop. ``square`` resizes both sides (few-shot protocol), ``short`` keeps the aspect."""

    size: int = Field(224, gt=0, description="side of the crop, in pixels: the network's input")
    resize: int = Field(256, gt=0, description="side to resize to before the crop")
    mode: Literal["square", "short"] = "short"
    filter: Literal["bilinear", "bicubic"] = "bicubic"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.size > self.resize:
            raise ValueError(f"size {self.size} is more than resize {self.resize}; a crop cannot be larger")
        return self

    def apply(self, pixels: Pixels) -> Pixels:
        """uint8 (H, W, 3) -> uint8 (size, size, 3)."""
        if self.mode == "square":
            scaled = resize(pixels, self.resize, self.resize, self.filter)
        else:
            scaled = resize_short_side(pixels, self.resize, self.filter)
        return np.ascontiguousarray(centre_crop(scaled, self.size))
