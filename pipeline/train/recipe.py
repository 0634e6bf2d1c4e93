"""How weights are updated: optimizer, schedule, precision, ZeRO."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.config import Config, PerAttempt
from pipeline.base.errors import RecipeError


class OptimizerRecipe(Config):
    """AdamW for pretraining (ViT Table 3), SGD with momentum for fine-tuning (ViT Table 4).

    ``weight_decay`` is in torch's sense: each update takes ``rate * weight_decay`` of a weight. big_vision's ``wd``
    follows the schedule but is not multiplied by the peak: its ``wd`` is ours times the peak, so that its ``wd=1e-4,
    lr=1e-3`` is ``weight_decay: 0.1`` here.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="peak")
    weight_decay: float = Field(0.1, ge=0, description="torch's sense: multiplied by the learning rate; matrices only")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    clip: float = Field(1.0, ge=0, description="global gradient norm; 0: no clipping")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a block relative to the next one; 1: all alike. For tuning"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of the weights (ViT: Polyak, 0.9999); 0: none is kept"
    )


_SPANS = ("warmup", "timescale", "cooldown")


class ScheduleRecipe(Config):
    """Linear warm-up from 0, a decay, and a linear cool-down at the end. Each span is in steps or in samples.

    ``rsqrt`` falls with the inverse square root of time, at half its peak three time scales after the warm-up, and is
    meant to end with a cool-down (arXiv 2106.04560); the same run can so be ended at several lengths.
    """

    decay: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"
    warmup_steps: int = Field(10_000, ge=0)
    warmup_samples: int = Field(0, ge=0, description="in the place of warmup_steps")
    timescale_steps: int = Field(10_000, ge=0, description="of rsqrt (big_vision: 10,000)")
    timescale_samples: int = Field(0, ge=0, description="in the place of timescale_steps")
    cooldown_steps: int = Field(0, ge=0, description="the last steps, over which the rate falls to the end; 0: none")
    cooldown_samples: int = Field(0, ge=0, description="in the place of cooldown_steps")
    end: float = Field(0.0, ge=0, description="learning rate that is reached when all steps are done")

    @model_validator(mode="before")
    @classmethod
    def _samples_take_the_place_of_steps(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        replaced = {f"{span}_steps": 0 for span in _SPANS if value.get(f"{span}_samples")}
        return replaced | value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for span in _SPANS:
            if getattr(self, f"{span}_steps") and getattr(self, f"{span}_samples"):
                raise ValueError(f"give {span}_steps or {span}_samples, not both")
        if self.decay == "rsqrt" and not (self.timescale_steps or self.timescale_samples):
            raise ValueError("rsqrt needs timescale_steps or timescale_samples")
        if self.decay in ("cosine", "linear") and (self.cooldown_steps or self.cooldown_samples):
            raise ValueError(f"a cool-down is for rsqrt and constant; {self.decay} comes to its end by itself")
        return self

    def span(self, name: Literal["warmup", "timescale", "cooldown"], batch_size: int) -> int:
        """The span called *name*, in samples."""
        steps, samples = getattr(self, f"{name}_steps"), getattr(self, f"{name}_samples")
        return int(samples or steps * batch_size)


_UNTRIED = "not tried on a GPU"


class EngineRecipe(Config):
    """Precision and partitioning. What is marked as not tried is handed to DeepSpeed as it is.

    Checkpoints know neither world size nor ZeRO stage, so most of it may change between attempts of one run.
    """

    zero_stage: PerAttempt[Literal[0, 1, 2, 3]] = 2
    precision: Literal["bf16", "fp32", "fp16"] = Field("bf16", description=f"of the forward pass; fp16: {_UNTRIED}")
    micro_batch_size: PerAttempt[int] = Field(
        0, ge=0, description="samples of one forward pass of a rank; 0: all of its batch"
    )
    loss_scale: float = Field(
        1024.0, gt=0, description=f"of fp16: fixed, so that a resumed run goes on with the same; {_UNTRIED}"
    )
    offload_optimizer: PerAttempt[Literal["none", "cpu"]] = Field(
        "none", description=f"where float32 weights and the optimizer's state are kept and updated; {_UNTRIED}"
    )
    offload_parameters: PerAttempt[Literal["none", "cpu", "nvme"]] = Field(
        "none", description=f"of zero_stage 3; {_UNTRIED}"
    )
    nvme_path: PerAttempt[str] = Field("", description=f"folder for offload_parameters: nvme; {_UNTRIED}")
    pin_memory: PerAttempt[bool] = Field(False, description=f"of what is offloaded; {_UNTRIED}")
    overlap_comm: PerAttempt[bool] = Field(False, description=f"reduce gradients during the backward pass; {_UNTRIED}")
    reduce_bucket_size: PerAttempt[int] = Field(
        50_000_000, gt=0, description="gradients reduced at a time, in elements"
    )
    persistence_threshold: PerAttempt[int] = Field(
        10_000, ge=0, description="of zero_stage 3: parameters with fewer elements stay whole on every rank"
    )
    allgather_bucket_size: PerAttempt[int] = Field(
        500_000_000, gt=0, multiple_of=2, description="the same of weights gathered"
    )


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
