"""The headline's honest sentence: does the linear probe of the last checkpoint beat both baselines?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.report.tables import Cell, Row, TaskTable

JUDGE = "linear"
Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """The answer for one task. ``overlapping`` names the baselines whose interval meets the checkpoint's."""

    task: str
    step: int
    answer: Answer
    overlapping: tuple[str, ...]
    sentence: str
    row: Row

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


def verdicts(tables: Iterable[TaskTable], last_step: int | None) -> tuple[Verdict, ...]:
    """One verdict per task (and choice of settings) with a linear probe; none while nothing is trained."""
    if last_step is None:
        return ()
    rows = [row for table in tables for row in table.rows if row.evaluator == JUDGE and row.is_headline]
    return tuple(_judge(row, last_step) for row in rows)


def _judge(row: Row, step: int) -> Verdict:
    cell = row.steps.get(step)
    name = row.label[:1].lower() + row.label[1:]
    if cell is None:
        sentence = f"On {row.task}, the last checkpoint (step {step}) has no {name} result yet."
        return Verdict(row.task, step, "unknown", (), sentence, row)
    rivals = {"raw pixels": row.pixels, "the untrained network": row.untrained}
    known = {rival: other for rival, other in rivals.items() if other is not None}
    missing = [rival for rival, other in rivals.items() if other is None]
    answer: Answer = "yes" if not missing else "unknown"
    if any(cell.value <= other.value for other in known.values()):
        answer = "no"
    parts = [_against(cell, rival, other) for rival, other in known.items()]
    parts += [f"nothing is recorded for {rival}" for rival in missing]
    sentence = f"On {row.task}, the {name} on step {step} reaches {cell.text}: {' and '.join(parts)}."
    overlapping = tuple(rival for rival, other in known.items() if cell.overlaps(other))
    return Verdict(row.task, step, answer, overlapping, sentence, row)


def _against(cell: Cell, rival: str, other: Cell) -> str:
    word = "above" if cell.value > other.value else "below" if cell.value < other.value else "equal to"
    overlap = "intervals overlap" if cell.overlaps(other) else "intervals do not overlap"
    return f"{word} {rival} at {other.text} ({overlap})"
