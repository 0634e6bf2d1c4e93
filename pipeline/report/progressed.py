"""Is the last checkpoint better than the one before? The answers come in as values: the page computes nothing.

They are made where per-sample outcomes can be compared, and handed to :func:`~pipeline.report.build.build_report`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Answer = Literal["yes", "no", "open", "unknown"]
LEVEL = 0.05  # adjusted p below which a difference is called one


@dataclass(frozen=True)
class Progressed:
    """One evaluator on one task: the newest checkpoint of a run against the one before it, on the same test images.

    ``difference`` (newest - before) with its 95 % interval, in points of a hundred where ``in_points``, else in the
    metric's own unit; None where ``reason`` says why nothing can be compared. ``p`` is adjusted for all comparisons of
    the report.
    """

    task: str
    evaluator: str
    label: str
    metric: str
    step: int
    before: int
    sentence: str
    probability: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    in_points: bool = True
    num_samples: int = 0
    seeds: tuple[int, ...] = ()

    @property
    def answer(self) -> Answer:
        """Yes or no where the adjusted p is below 0.05; else it is open."""
        if self.probability is None or self.p is None:
            return "unknown"
        if self.p >= LEVEL:
            return "open"
        return "yes" if self.probability > 0.5 else "no"

    @property
    def badge(self) -> str:
        """The answer in a few words."""
        words = {"yes": "Better", "no": "Worse", "open": "Not clear", "unknown": "Not known"}
        return words[self.answer]

    @property
    def odds(self) -> str:
        """The probability that it is better, for people."""
        if self.probability is None:
            return "-"
        if self.probability > 0.999:
            return "> 99.9 %"
        return "< 0.1 %" if self.probability < 0.001 else f"{100 * self.probability:.1f} %"

    @property
    def change(self) -> str:
        """``+1.60 [+0.30, +2.90]``, in points for shares."""
        if self.difference is None or self.low is None or self.high is None:
            return "-"
        digits = 2 if self.in_points else 4
        return f"{self.difference:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
