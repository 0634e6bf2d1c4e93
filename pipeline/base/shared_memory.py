"""The memory that a loader process shares with its rank: what it is doing, then a slot for each batch under way.

What it is doing can be read even after it was killed. Numbers are written whole; a torn text only looks odd.
"""

from __future__ import annotations

import mmap
import threading
from typing import Any

import numpy as np

from pipeline.base.child_process import cpu_time_of

_NUMBERS = 8
_TEXT = slice(64, 1024)
_BEATS, _STEPS, _BUSY, _STUCK, _WAITS, _LENGTH = range(6)


class StatusPage:
    """What the process is doing. Written by the process, read by its rank."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._numbers = np.frombuffer(memory, np.uint64, _NUMBERS)
        self._text = memoryview(memory)[_TEXT]

    def tell(self, doing: str) -> None:
        """One more step of the work: *doing* begins."""
        self._put(doing)
        self._numbers[_WAITS] = 0
        self._numbers[_BUSY] = 1
        self._numbers[_STEPS] += 1

    def wait(self, what: str) -> None:
        """The work waits for *what*, which does not answer; a sign of life, to be given again and again."""
        self._put(what)
        self._numbers[_WAITS] = 1
        self._numbers[_STEPS] += 1

    def rest(self) -> None:
        """Nothing to do."""
        self._numbers[_BUSY] = self._numbers[_WAITS] = 0
        self._numbers[_STEPS] += 1

    def beat(self, stuck: bool) -> None:
        """The process lives; *stuck*: but its work does not go on."""
        self._numbers[_STUCK] = stuck
        self._numbers[_BEATS] += 1

    @property
    def beats(self) -> int:
        """Changes as long as the process lives."""
        return int(self._numbers[_BEATS])

    @property
    def steps(self) -> int:
        """Changes as long as the work goes on."""
        return int(self._numbers[_STEPS])

    @property
    def busy(self) -> bool:
        """Whether there is work that should go on."""
        return bool(self._numbers[_BUSY])

    @property
    def stuck(self) -> bool:
        """Whether the process says that its work does not go on."""
        return bool(self._numbers[_STUCK])

    @property
    def waits(self) -> bool:
        """Whether it waits for what ``doing`` names."""
        return bool(self._numbers[_WAITS])

    @property
    def doing(self) -> str:
        """What was told last."""
        return bytes(self._text[: int(self._numbers[_LENGTH])]).decode(errors="replace") or "starting"

    def _put(self, text: str) -> None:
        data = text.encode()[: len(self._text)]
        self._text[: len(data)] = data
        self._numbers[_LENGTH] = len(data)

    def release(self) -> None:
        """Let go of the memory."""
        self._numbers = np.zeros(_NUMBERS, np.uint64)
        self._text.release()
        self._text = memoryview(bytearray(_TEXT.stop - _TEXT.start))


class StallDetector:
    """For how long something has shown no life, by ticks of whoever watches it.

    Time in which it could not run, since the machine had no CPU for it, does not count; nor does time in which nobody
    watched, for then both may have been frozen.
    """

    def __init__(self, task: str, tick_seconds: float) -> None:
        self._task, self._tick = task, tick_seconds
        self._mark: Any = None
        self._cpu_seconds = 0.0
        self.seconds = 0.0
        self.stopped_seconds = 0.0

    def tick(self, mark: Any) -> None:
        """A tick has passed. *mark* changes whenever there was life."""
        state, cpu_seconds = cpu_time_of(self._task)
        starved = state == "R" and cpu_seconds == self._cpu_seconds
        if mark != self._mark:
            self._mark, self.seconds = mark, 0.0
        elif not starved:
            self.seconds += self._tick
        self.stopped_seconds = self.stopped_seconds + self._tick if state in "Tt" else 0.0
        self._cpu_seconds = cpu_seconds


class HeartbeatThread(threading.Thread):
    """The thread that beats for a process, and says when the thread that works (the main one) is stuck."""

    def __init__(self, page: StatusPage, worker: str, stuck_seconds: float, beat_seconds: float) -> None:
        super().__init__(name="pulse", daemon=True)
        self._page, self._worker = page, worker
        self._stuck_seconds, self._beat_seconds = stuck_seconds, beat_seconds
        self._end = threading.Event()

    def run(self) -> None:
        """Beat until ``end``."""
        silence = StallDetector(self._worker, self._beat_seconds)
        while not self._end.wait(self._beat_seconds):
            silence.tick(self._page.steps)
            self._page.beat(self._page.busy and silence.seconds >= self._stuck_seconds)

    def end(self) -> None:
        """Beat no more."""
        self._end.set()
        self.join()
