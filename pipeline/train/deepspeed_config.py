"""What DeepSpeed is configured with, and the memory that the model states of a rank take, before anything is started.

The configuration is complete and explicit: DeepSpeed's defaults (clipping 1.0, for one) are not relied on.

ZeRO (arXiv 1910.02054, section 3) counts 2 + 2 + 12 bytes of a parameter for mixed precision with Adam: weights,
gradients, and float32 weights with two moments, each divided by the ranks from its stage on. What DeepSpeed 0.19 keeps
through this engine differs, as was counted in its tensors on two ranks:

* float32 at stages 1 to 3 has its weights twice: those of the forward pass, and the partition that is updated;
* at stages 1 and 2 gradients are partitioned alike; the update adds a float32 copy of the rank's part;
* stage 3 keeps its gradients' partition and a bucket between updates;
* micro-batches in bfloat16 are summed in float32 from stage 1 on, at stage 1 in one piece.
"""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import RecipeError
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe, accumulation

_FLOAT32 = 4  # bytes
_BYTES = {"fp32": _FLOAT32, "bf16": 2, "fp16": 2}  # of a weight of the forward pass


def check_engine(recipe: EngineRecipe) -> None:
    """Raises RecipeError with all that cannot be honoured, before anything starts."""
    problems = []
    if recipe.precision == "fp16" and recipe.zero_stage == 0:
        problems.append("engine: fp16 needs zero_stage 1, 2 or 3")
    if recipe.offload_optimizer != "none" and recipe.zero_stage == 0:
        problems.append("engine.offload_optimizer needs zero_stage 1, 2 or 3")
    if recipe.offload_parameters != "none" and recipe.zero_stage != 3:
        problems.append("engine.offload_parameters needs zero_stage 3")
    if recipe.offload_parameters == "nvme" and not recipe.nvme_path:
        problems.append("engine.offload_parameters: nvme needs engine.nvme_path")
    if problems:
        raise RecipeError(problems)


def deepspeed_config(
    optimizer: OptimizerRecipe, recipe: EngineRecipe, batch_size: int, world_size: int, num_parameters: int
) -> dict[str, Any]:
    """For *num_parameters* trained on *world_size* ranks. Raises RecipeError for what cannot be honoured."""
    check_engine(recipe)
    micro, steps = accumulation(batch_size, world_size, recipe.micro_batch_size)
    config: dict[str, Any] = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "fp16": {"enabled": recipe.precision == "fp16", "loss_scale": recipe.loss_scale},
        "zero_optimization": _zero(recipe, num_parameters),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # ours is torch's: what it keeps is known, and no operator is compiled
        "steps_per_print": 2**31,
    }
    if sums_in_float32(recipe, steps):
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def sums_in_float32(recipe: EngineRecipe, steps: int) -> bool:
    """Whether the gradients of *steps* micro-batches are summed in more than the precision they have.

    DeepSpeed cannot where nothing is partitioned.
    """
    return recipe.precision != "fp32" and recipe.zero_stage > 0 and steps > 1


def _zero(recipe: EngineRecipe, num_parameters: int) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": recipe.zero_stage,
        "overlap_comm": recipe.overlap_comm,
        "reduce_bucket_size": min(recipe.reduce_bucket_size, max(1, num_parameters)),  # allocated in full
        "allgather_bucket_size": recipe.allgather_bucket_size,
    }
    if recipe.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = recipe.persistence_threshold
    pinned = {"pin_memory": recipe.pin_memory}
    if recipe.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": recipe.offload_optimizer, **pinned}
    if recipe.offload_parameters != "none":
        path = {"nvme_path": recipe.nvme_path} if recipe.nvme_path else {}
        zero["offload_param"] = {"device": recipe.offload_parameters, **pinned, **path}
    return zero


def model_state_bytes(
    num_parameters: int,
    engine: EngineRecipe,
    optimizer: OptimizerRecipe,
    world_size: int = 1,
    *,
    accumulation_steps: int = 1,
) -> dict[str, int]:
    """Bytes of one rank of *world_size*, by what they are of; their sum is that of an update, the most there is.

    "gradients" are there for the time of an update only; without them it is what stays between two updates. Stage 3
    leaves out parameters below ``persistence_threshold``, which are a small part; activations are not counted, nor
    what offloading moves elsewhere.
    """
    stage = engine.zero_stage
    half, sums = _BYTES[engine.precision], sums_in_float32(engine, accumulation_steps)
    moments = {"adamw": 2, "sgd": 1 if optimizer.momentum else 0}[optimizer.name]
    has_masters = stage > 0 or half != _FLOAT32
    split = world_size if stage else 1  # what ZeRO partitions from stage 1 on
    part = num_parameters / split
    buffers, gradients = _gradients(num_parameters, engine, split, sums_in_float32=sums)
    sizes = {
        "weights": half * num_parameters / (world_size if stage == 3 else 1),
        "optimizer": _FLOAT32 * (moments + has_masters) * part,
        "ema": _FLOAT32 * num_parameters / world_size if optimizer.ema else 0,
        "buffers": buffers,
        "gradients": gradients,
    }
    return {name: round(count) for name, count in sizes.items()}


def _gradients(num_parameters: int, engine: EngineRecipe, split: int, *, sums_in_float32: bool) -> tuple[float, float]:
    """(bytes that stay between updates, bytes that come and go)."""
    half = _BYTES[engine.precision]
    summed = _FLOAT32 if sums_in_float32 else half
    part = num_parameters / split
    if engine.zero_stage == 0:
        return 0, num_parameters * (half if half == _FLOAT32 else half + _FLOAT32)
    if engine.zero_stage == 3:
        bucket = half * min(engine.reduce_bucket_size, num_parameters)
        return summed * part + bucket, _FLOAT32 * part
    if sums_in_float32:
        return (_FLOAT32 * num_parameters, half * num_parameters) if engine.zero_stage == 1 else (0, _FLOAT32 * part)
    return 0, (half + _FLOAT32) * part
