"""DeepSpeed's configuration, whole and explicit: its defaults (clipping 1.0, for one) are not relied on."""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import RecipeError
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe, accumulation


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
        "reduce_bucket_size": min(recipe.reduce_bucket_size, max(1, num_parameters)),  # it is allocated whole
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
