"""What fixes the bytes of a dataset, given its corpus."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.base.config import Config
from pipeline.base.units import parse_bytes
from pipeline.images.check import Reencode

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class ShardRecipe(Config):
    """Sizes of shards, their order, how images are checked, and how many rejects are tolerated."""

    seed: int = Field(0, ge=0, description="of the global shuffle at write time")
    max_samples: int = Field(10_000, gt=0, description="a shard holds at most this many candidates")
    max_bytes: Bytes = Field(256_000_000, description="and about this many bytes of images as listed, like '256 MB'")
    check: Literal["full", "header"] = Field(
        "full", description="decode every image once, or trust what its header says (no pixel statistics)"
    )
    resize: Reencode = Reencode()
    max_reject_ratio: float = Field(0.01, ge=0, le=1, description="more rejects than this share fail the stage")
    tolerated_rejects: int = Field(10, ge=0, description="so many rejects never fail it: a ratio says little of few")

    @model_validator(mode="after")
    def _pixels_are_there(self) -> Self:
        if self.check == "header" and self.resize.mode != "keep":
            raise ValueError("resize needs decoded images: set check to full")
        return self
