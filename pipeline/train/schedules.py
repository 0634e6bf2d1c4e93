"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

from pipeline.train.recipe import ScheduleRecipe


def learning_rate(step: int, num_steps: int, peak: float, recipe: ScheduleRecipe) -> float:
    """The rate of update *step* (0 is the first) of *num_steps*.

    Warm-up is linear and reaches *peak* at ``warmup_steps`` updates; decay spans the rest and would reach ``end``
    at update ``num_steps`` (big_vision utils.create_learning_rate_schedule).
    """
    if step < recipe.warmup_steps:
        return peak * (step + 1) / recipe.warmup_steps
    if recipe.decay == "constant":
        return peak
    progress = (step - recipe.warmup_steps) / max(1, num_steps - recipe.warmup_steps)
    progress = min(1.0, progress)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if recipe.decay == "cosine" else 1 - progress
    return recipe.end + (peak - recipe.end) * share
