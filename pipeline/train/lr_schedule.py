"""Learning-rate schedules: pure functions of the samples seen, so no batch size or number of ranks is in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.train.recipe import ScheduleRecipe


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a training of *total* samples. All spans are in samples.

    Equal to big_vision's ``create_learning_rate_schedule`` (utils.py) at ``samples = step * batch_size``: the first
    update has rate 0 where there is a warm-up, and the end would be reached by the update after the last. Beyond it:
    ``end`` is for every decay, not for linear alone.
    """

    decay: Literal["cosine", "linear", "rsqrt", "constant"]
    peak: float
    total: int
    warmup: int = 0
    timescale: int = 0
    cooldown: int = 0
    end: float = 0.0

    @classmethod
    def of(cls, recipe: ScheduleRecipe, peak: float, num_steps: int, batch_size: int) -> Self:
        """The schedule of *recipe* for *num_steps* updates of *batch_size* samples."""
        return cls(
            decay=recipe.decay,
            peak=peak,
            total=num_steps * batch_size,
            warmup=recipe.span("warmup", batch_size),
            timescale=recipe.span("timescale", batch_size),
            cooldown=recipe.span("cooldown", batch_size),
            end=recipe.end,
        )

    def rate(self, seen: int) -> float:
        """The rate of an update before which *seen* samples were seen."""
        rate = self._decayed(max(0, seen - self.warmup))
        if seen < self.warmup:
            rate *= seen / self.warmup
        left = max(0, self.total - seen)
        if left < self.cooldown:
            rate = self.end + (rate - self.end) * (left / self.cooldown)
        return rate

    def _decayed(self, after: int) -> float:
        """The rate *after* as many samples since the warm-up, without cool-down."""
        if self.decay == "constant":
            return self.peak
        if self.decay == "rsqrt":  # arXiv 2106.04560, section 3.5
            return self.peak / math.sqrt(1 + after / self.timescale)
        progress = min(1.0, after / max(1, self.total - self.warmup))
        share = 0.5 * (1 + math.cos(math.pi * progress)) if self.decay == "cosine" else 1 - progress
        return self.end + (self.peak - self.end) * share
