"""How weights are updated: optimizer, schedule, precision, ZeRO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.base.config import Config
from pipeline.base.errors import RecipeError


class OptimizerRecipe(Config):
    """AdamW for pretraining (ViT Table 3), SGD with momentum for fine-tuning (ViT Table 4)."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="peak")
    weight_decay: float = Field(0.1, ge=0, description="torch's sense: multiplied by the learning rate; matrices only")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    clip: float = Field(1.0, ge=0, description="global gradient norm; 0: no clipping")


class ScheduleRecipe(Config):
    """Linear warm-up from 0, then decay to ``end``."""

    decay: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(10_000, ge=0)
    end: float = Field(0.0, ge=0, description="learning rate at the last step")


class EngineRecipe(Config):
    """Precision and partitioning."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["bf16", "fp32"] = "bf16"
    micro_batch_size: int = Field(0, ge=0, description="samples of one forward pass of a rank; 0: all of its batch")


def accumulation(batch_size: int, world_size: int, micro_batch_size: int) -> tuple[int, int]:
    """(micro-batch size, accumulation steps) of a rank. Raises RecipeError when the batch does not divide."""
    if batch_size % world_size:
        raise RecipeError([f"batch_size {batch_size} is not divisible by {world_size} workers"])
    per_rank = batch_size // world_size
    micro = micro_batch_size or per_rank
    if per_rank % micro:
        raise RecipeError(
            [f"micro_batch_size {micro} does not divide the {per_rank} samples that each of {world_size} ranks gets"]
        )
    return micro, per_rank // micro
