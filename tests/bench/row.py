"""One row of the table, and how a rate is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Row:
    """Ours against a peer's, as people read it, and ours / peer. ``least``: what the ratio should reach."""

    what: str
    ours: str
    peer: str
    ratio: float
    least: float | None = None

    def __str__(self) -> str:
        """As a line of the table in BENCHMARKS.md."""
        target = "" if self.least is None else f"{self.least:.2f}"
        if self.least is not None and self.ratio < self.least:
            target += " missed"
        return f"| {self.what} | {self.ours} | {self.peer} | {self.ratio:.2f} | {target} |"


class Spent(NamedTuple):
    """What a run took; ``cpu_seconds`` of all its processes, 0 where that is not known."""

    seconds: float
    cpu_seconds: float = 0.0

    def told(self, count: int) -> str:
        """For people; *count* images were worked on."""
        rate = f"{count / self.seconds:.0f} images/s"
        return f"{rate}, {self.cpu_seconds / count * 1e6:.0f} us of CPU each" if self.cpu_seconds else rate


def table(rows: Iterable[Row]) -> str:
    """*rows* as Markdown."""
    return "| what | ours | peer | ratio | target |\n|---|---|---|---|---|\n" + "".join(f"{row}\n" for row in rows)


def rate(call: Callable[[], int], seconds: float = 3.0) -> float:
    """Units per second of *call*, which returns how many it did; after one call to warm up."""
    call()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += call()
    return done / (time.perf_counter() - started)
