"""What the training state of one rank takes, before anything is started.

ZeRO (arXiv 1910.02054, section 3) counts 2 + 2 + 12 bytes of a parameter for mixed precision with Adam: weights,
gradients, and float32 weights with two moments, each divided by the ranks from its stage on. What DeepSpeed 0.19 keeps
through this engine differs, as was counted in its tensors on two ranks:

* float32 at stages 1 to 3 has its weights twice: those of the forward pass, and the partition that is updated;
* at stages 1 and 2 gradients are partitioned alike; the update adds a float32 copy of the rank's part;
* stage 3 keeps its gradients' partition and a bucket between updates;
* micro-batches in bfloat16 are summed in float32 from stage 1 on, at stage 1 in one piece.
"""

from __future__ import annotations

from pipeline.train.engine_config import sums_in_float32
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe

_FLOAT32 = 4
_BYTES = {"fp32": _FLOAT32, "bf16": 2, "fp16": 2}


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
    kept, passing = _gradients(num_parameters, engine, split, sums_in_float32=sums)
    found = {
        "weights": half * num_parameters / (world_size if stage == 3 else 1),
        "optimizer": _FLOAT32 * (moments + has_masters) * part,
        "ema": _FLOAT32 * num_parameters / world_size if optimizer.ema else 0,
        "buffers": kept,
        "gradients": passing,
    }
    return {name: round(count) for name, count in found.items()}


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
