"""What fixes the order and the pixels of the training stream."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.base.config import Config


class AugmentRecipe(Config):
    """Random crop and flip. ``resized``: a random part of the area, resized; ``padded``: shifted by up to *padding*."""

    crop: Literal["resized", "padded", "none"] = "resized"
    size: int = Field(224, gt=0, description="side of the output, in pixels")
    area_min: float = Field(0.05, gt=0, le=1, description="smallest part of the area (big_vision: 5-100 %)")
    aspect_max: float = Field(4 / 3, ge=1, description="aspect ratios are drawn from 1/aspect_max to aspect_max")
    padding: int = Field(0, ge=0, description="pixels on each side, for 'padded'")
    flip: bool = Field(True, description="mirror every second image")
    filter: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _something_stays(self) -> Self:
        if self.padding > self.size:
            raise ValueError(
                f"padding {self.padding} is more than size {self.size}; nothing of the image would be left"
            )
        return self


class StreamRecipe(Config):
    """The global order (batch, partitions, window) and what happens to each sample."""

    batch_size: int = Field(4096, gt=0, description="samples of a global batch, over all ranks")
    partitions: int = Field(8, gt=0, description="P: world sizes that divide it see the same global batches")
    window: int = Field(10_000, gt=0, description="samples of the shuffle window inside a partition")
    augment: AugmentRecipe = AugmentRecipe()
    check: Literal["digest", "header"] = Field("digest", description="what is compared at each read of a sample")
    max_damaged: int = Field(0, ge=0, description="damaged samples that are replaced by the next of their slot")
    workers: int = Field(0, ge=0, description="loader processes of each rank; 0: in the rank itself")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.partitions:
            near = [count for count in range(1, self.batch_size + 1) if self.batch_size % count == 0]
            raise ValueError(f"partitions {self.partitions} does not divide batch_size {self.batch_size}; use {near}")
        return self
