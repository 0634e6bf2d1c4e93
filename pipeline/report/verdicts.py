"""The two questions of the page: does the last checkpoint beat its baselines, and is it better than the one before?

The first is answered here from scores. Answers to the second come in as values (:class:`CheckpointComparison`): they
are made where per-sample outcomes can be compared, and handed to :func:`~pipeline.report.stage.build_report`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.report.formatting import probability_text
from pipeline.report.tables import Cell, ScoreRow, TaskTable

_JUDGE = "linear"  # the evaluator by which a checkpoint is compared with its baselines
_LEVEL = 0.05  # adjusted p below which a difference is called one
BaselineAnswer = Literal["yes", "no", "unknown"]
ComparisonAnswer = Literal["yes", "no", "open", "unknown"]


@dataclass(frozen=True)
class BaselineVerdict:
    """The answer for one task. ``overlapping`` names the baselines whose interval meets the checkpoint's."""

    task: str
    step: int
    answer: BaselineAnswer
    overlapping: tuple[str, ...]
    sentence: str
    row: ScoreRow

    @property
    def badge(self) -> str:
        """The answer in a few words."""
        if self.answer == "unknown":
            return "Not known"
        if self.answer == "no":
            return "No"
        return "Yes, but intervals overlap" if self.overlapping else "Yes"

    @property
    def scale(self) -> tuple[float, float]:
        """Ends of the rail that all intervals of this verdict are drawn on, in whole 5 %."""
        cells = [cell for cell in (self.cell, *self.row.baselines) if cell is not None]
        low = min((cell.low for cell in cells), default=0.0)
        high = max((cell.high for cell in cells), default=1.0)
        return max(0.0, math.floor(20 * low - 0.2) / 20), min(1.0, math.ceil(20 * high + 0.2) / 20)

    @property
    def cell(self) -> Cell | None:
        """The checkpoint's own value."""
        return self.row.steps.get(self.step)


def verdicts(tables: Iterable[TaskTable], last_step: int | None) -> tuple[BaselineVerdict, ...]:
    """One verdict per task (and choice of settings) with a linear probe; none while nothing is trained."""
    if last_step is None:
        return ()
    rows = [row for table in tables for row in table.rows if row.evaluator == _JUDGE and row.is_headline]
    return tuple(_judge(row, last_step) for row in rows)


def _judge(row: ScoreRow, step: int) -> BaselineVerdict:
    cell = row.steps.get(step)
    name = row.label[:1].lower() + row.label[1:]
    if cell is None:
        sentence = f"On {row.task}, the last checkpoint (step {step}) has no {name} result yet."
        return BaselineVerdict(row.task, step, "unknown", (), sentence, row)
    baselines = {"raw pixels": row.pixels, "the untrained network": row.untrained}
    known = {rival: baseline for rival, baseline in baselines.items() if baseline is not None}
    missing = [rival for rival, baseline in baselines.items() if baseline is None]
    answer: BaselineAnswer = "yes" if not missing else "unknown"
    if any(cell.value <= baseline.value for baseline in known.values()):
        answer = "no"
    parts = [_against(cell, rival, baseline) for rival, baseline in known.items()]
    parts += [f"nothing is recorded for {rival}" for rival in missing]
    sentence = f"On {row.task}, the {name} on step {step} reaches {cell.text}: {' and '.join(parts)}."
    overlapping = tuple(rival for rival, baseline in known.items() if cell.overlaps(baseline))
    return BaselineVerdict(row.task, step, answer, overlapping, sentence, row)


def _against(cell: Cell, rival: str, baseline: Cell) -> str:
    word = "above" if cell.value > baseline.value else "below" if cell.value < baseline.value else "equal to"
    overlap = "intervals overlap" if cell.overlaps(baseline) else "intervals do not overlap"
    return f"{word} {rival} at {baseline.text} ({overlap})"


@dataclass(frozen=True)
class CheckpointComparison:
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
    def answer(self) -> ComparisonAnswer:
        """Yes or no where the adjusted p is below 0.05; else it is open."""
        if self.probability is None or self.p is None:
            return "unknown"
        if self.p >= _LEVEL:
            return "open"
        return "yes" if self.probability > 0.5 else "no"

    @property
    def badge(self) -> str:
        """The answer in a few words."""
        return {"yes": "Better", "no": "Worse", "open": "Not clear", "unknown": "Not known"}[self.answer]

    @property
    def odds(self) -> str:
        """The probability that it is better, for people."""
        return "-" if self.probability is None else probability_text(self.probability)

    @property
    def change(self) -> str:
        """``+1.60 [+0.30, +2.90]``, in points for shares."""
        if self.difference is None or self.low is None or self.high is None:
            return "-"
        digits = 2 if self.in_points else 4
        return f"{self.difference:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
