"""Memory that a process shares with a child, and signs of life in it.

The child keeps a ``StatusPage``: what it does can be read even after it was killed. A ``HeartbeatThread`` of the child
writes it; its parent watches the beats by a ``StallDetector``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading

import numpy as np

from pipeline.base.child_process import cpu_time_of

_NUM_NUMBERS = 8  # uint64, at the start of the page
_TEXT = slice(64, 1024)  # bytes of the page
_BEATS, _STEPS, _BUSY, _STUCK, _WAITING, _LENGTH = range(6)


class SharedMemory:
    """Memory of *num_bytes* without a name, which children inherit by its descriptor. Raises OSError."""

    def __init__(self, label: str, num_bytes: int) -> None:
        self.descriptor = os.memfd_create(label)
        try:
            os.ftruncate(self.descriptor, num_bytes)
            self.buffer = mmap.mmap(self.descriptor, num_bytes)
        except OSError:
            os.close(self.descriptor)
            raise

    @staticmethod
    def attach(descriptor: int) -> mmap.mmap:
        """In the child: all of the memory that has *descriptor*."""
        return mmap.mmap(descriptor, 0)

    def close_descriptor(self) -> None:
        """No child that starts from here on gets it. The memory stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def close(self) -> None:
        """Give it back. While an array over it is in use, the memory stays for that."""
        self.close_descriptor()
        with contextlib.suppress(BufferError):
            self.buffer.close()


class StatusPage:
    """What a process is doing, in the first 1,024 bytes of *memory*. Written by the process, read by its parent.

    Numbers are written whole; a torn text only looks odd.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._numbers = np.frombuffer(memory, np.uint64, _NUM_NUMBERS)
        self._text = memoryview(memory)[_TEXT]

    def begin(self, activity: str) -> None:
        """One more step of the work: *activity* begins."""
        self._put(activity)
        self._numbers[_WAITING] = 0
        self._numbers[_BUSY] = 1
        self._numbers[_STEPS] += 1

    def wait(self, activity: str) -> None:
        """*activity* is to wait for something that does not answer. A sign of life, to be given again and again."""
        self._put(activity)
        self._numbers[_WAITING] = 1
        self._numbers[_STEPS] += 1

    def rest(self) -> None:
        """There is nothing to do."""
        self._numbers[_BUSY] = self._numbers[_WAITING] = 0
        self._numbers[_STEPS] += 1

    def beat(self, is_stuck: bool) -> None:
        """The process lives; *is_stuck*: but its work does not go on."""
        self._numbers[_STUCK] = is_stuck
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
    def is_busy(self) -> bool:
        """Whether there is work that should go on."""
        return bool(self._numbers[_BUSY])

    @property
    def is_stuck(self) -> bool:
        """Whether the process itself reports that its work does not go on."""
        return bool(self._numbers[_STUCK])

    @property
    def is_waiting(self) -> bool:
        """Whether it waits, as ``activity`` describes."""
        return bool(self._numbers[_WAITING])

    @property
    def activity(self) -> str:
        """What it does, or did last."""
        return bytes(self._text[: int(self._numbers[_LENGTH])]).decode(errors="replace") or "starting"

    def release(self) -> None:
        """Let go of the memory."""
        self._numbers = np.zeros(_NUM_NUMBERS, np.uint64)
        self._text.release()
        self._text = memoryview(bytearray(_TEXT.stop - _TEXT.start))

    def _put(self, text: str) -> None:
        data = text.encode()[: len(self._text)]
        self._text[: len(data)] = data
        self._numbers[_LENGTH] = len(data)


class StallDetector:
    """For how long a process or thread (*task* below ``/proc``) has shown no life, in ticks of whoever watches it.

    Time in which it could not run, since the machine had no CPU for it, does not count; nor does time in which nobody
    watched, for then both may have been frozen. ``seconds`` without life and ``stopped_seconds`` (stopped by a signal)
    begin anew with each sign of the contrary.
    """

    def __init__(self, task: str, tick_seconds: float) -> None:
        self._task, self._tick_seconds = task, tick_seconds
        self._mark: int | None = None
        self._cpu_seconds = 0.0
        self.seconds = 0.0
        self.stopped_seconds = 0.0

    def tick(self, mark: int) -> None:
        """A tick has passed. *mark* changes whenever there was life."""
        state, cpu_seconds = cpu_time_of(self._task)
        is_starved = state == "R" and cpu_seconds == self._cpu_seconds
        if mark != self._mark:
            self._mark, self.seconds = mark, 0.0
        elif not is_starved:
            self.seconds += self._tick_seconds
        self.stopped_seconds = self.stopped_seconds + self._tick_seconds if state in "Tt" else 0.0
        self._cpu_seconds = cpu_seconds


class HeartbeatThread(threading.Thread):
    """Beats on *page* for its process, and reports there when the thread that works is stuck.

    *worker*: that thread, as ``StallDetector`` names it; *stuck_seconds*: without a step of its work.
    """

    def __init__(self, page: StatusPage, worker: str, stuck_seconds: float, beat_seconds: float) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._page, self._worker = page, worker
        self._stuck_seconds, self._beat_seconds = stuck_seconds, beat_seconds
        self._end = threading.Event()

    def run(self) -> None:
        """Beat until ``end``."""
        stall = StallDetector(self._worker, self._beat_seconds)
        while not self._end.wait(self._beat_seconds):
            stall.tick(self._page.steps)
            self._page.beat(self._page.is_busy and stall.seconds >= self._stuck_seconds)

    def end(self) -> None:
        """Beat no more."""
        self._end.set()
        self.join()
