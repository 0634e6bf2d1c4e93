"""What fixes the bytes of a dataset, given its corpus."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from pipeline.base.config import Config
from pipeline.base.quantities import parse_bytes

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class ShardRecipe(Config):
    """Sizes of shards, their order, and how many rejects are tolerated."""

    seed: int = Field(0, ge=0, description="of the global shuffle at write time")
    max_samples: int = Field(10_000, gt=0, description="a shard holds at most this many candidates")
    max_bytes: Bytes = Field(256_000_000, description="and about this many bytes of images, like '256 MB'")
    max_reject_ratio: float = Field(0.01, ge=0, le=1, description="more rejects than this share fail the stage")
    tolerated_rejects: int = Field(10, ge=0, description="so many rejects never fail it: a ratio says little of few")
