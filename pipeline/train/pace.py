"""How a rank's time and memory go, and what of it is compared with the other ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
COUNT = 4  # numbers that are exchanged


class Pace:
    """Sums of this rank's step, and of the slowest ranks since the last row.

    What is compared is the time of the forward passes: the rest of a step waits for the other ranks, so that it takes
    as long everywhere. In ZeRO stage 3 forward gathers weights, and waits a little as well.
    """

    def __init__(self) -> None:
        self._waited = self._forward = 0.0
        self.waited_seconds = self._slowest = self._fastest = 0.0
        self.resident_bytes = 0

    def timed(self, phase: Literal["wait", "forward", "update"], seconds: float) -> None:
        """*seconds* of this step went into *phase*, as the training loop says it."""
        if phase == "wait":
            self._waited += seconds
        elif phase == "forward":
            self._forward += seconds

    def take(self) -> list[float]:
        """What this rank exchanges at the end of a step: numbers of which the largest counts."""
        numbers = [self._waited, self._forward, -self._forward, float(resident_bytes())]
        self._waited = self._forward = 0.0
        return numbers

    def absorb(self, largest: Sequence[float]) -> None:
        """The largest of all ranks' numbers of a step."""
        waited, slowest, fastest, resident = largest
        self.waited_seconds += waited
        self._slowest += slowest
        self._fastest -= fastest
        self.resident_bytes = max(self.resident_bytes, int(resident))

    def clear(self) -> None:
        """Begin a new row."""
        self.waited_seconds = self._slowest = self._fastest = 0.0
        self.resident_bytes = 0

    @property
    def skew(self) -> float:
        """By how much the slowest rank of each step is slower than its fastest: 0.1 is 10 %."""
        return self._slowest / self._fastest - 1.0 if self._fastest > 0 else 0.0


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
