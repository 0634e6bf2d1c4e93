"""Images are decoded in a child process, so that one which crashes, hangs or fills the memory costs itself alone.

One child decodes; it is kept from call to call. While it works on some images, the caller works on others. When it
dies, the image it was at is tried once more by a new child, and those behind it are sent again. A rejection is never
the machine's fault: the clock that detects a hang counts only what the child itself used or slept away while this side
was waiting for it, and a child that was killed or stopped from outside does not count as a try.
``sandbox_worker.py`` is the program of the child.
"""

from __future__ import annotations

import atexit
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Generic, Self, TypeVar

from pipeline.base.child_process import ChildProcess
from pipeline.base.errors import FailedError
from pipeline.images.check import CheckOptions, CheckResult, refuse_if_impossible
from pipeline.images.decode import ImageRejectedError
from pipeline.images.sandbox_worker import READY, SIZE, SIZE_BODY, ChildSettings, unpack

T = TypeVar("T")

_PROGRAM = "pipeline.images.sandbox_worker"
_TICK_SECONDS = 0.05
_FEW = 3  # images of which the child should have all bytes: with fewer it soon has nothing to do
_PLENTY, _NAP_SECONDS = 8, 0.002  # with so many to go on with, several results are fetched at once
_START_TICKS, _START_TICK_SECONDS = 600, 0.1  # in which nothing came from a child that starts
_STARTS = 3  # children in a row that were killed from outside before they were ready
_OUTSIDE_KILLS = 5  # of children that were at the same image: it is the image that has them killed, by its memory
_IDLE_SECONDS = 60.0  # the child neither ran nor slept, or had not even got the image: the machine's fault


@dataclass(frozen=True)
class Limits:
    """What one image may cost. A larger image is given more time: *seconds_per_megapixel* over the first four."""

    seconds: float = 2.0
    seconds_per_megapixel: float = 0.5
    tries: int = 2
    memory_bytes: int = 4 << 30  # address space of the child; 64 megapixels of the most wasteful kind take 2.7 GB
    window_images: int = 128
    window_bytes: int = 16 << 20


@dataclass(eq=False)
class _Job(Generic[T]):
    """One image in flight. *num_pixels* is known of a large one that is being decoded."""

    tag: T
    data: bytes
    result: CheckResult | ImageRejectedError | None = None
    num_pixels: int = 0
    tries: int = 0
    outside_kills: int = 0


class _StallClock:
    """How long the child has been at one image, by its own account."""

    def __init__(self) -> None:
        self.slept = self.idle = self.ran = 0.0
        self._started_at: float | None = None
        self._last = 0.0

    def tick(self, state: str, cpu_seconds: float) -> None:
        """A tick in which nothing came from the child."""
        if self._started_at is None:
            self._started_at = self._last = cpu_seconds
        self.ran = cpu_seconds - self._started_at
        if state == "S" and cpu_seconds == self._last:
            self.slept += _TICK_SECONDS
        else:
            self.idle += _TICK_SECONDS
        self._last = cpu_seconds


class Sandbox:
    """See the module. Not for use by two threads at once. Raises FailedError when its child cannot be started."""

    def __init__(self, options: CheckOptions, limits: Limits | None = None) -> None:
        refuse_if_impossible(options.reencode)
        self.options, self.limits = options, limits or Limits()
        self._child: ChildProcess | None = None
        self._flight: deque[_Job[object]] = deque()
        self._flight_bytes = 0
        self._num_open = 0  # of those in flight, the ones without a result
        self._clock = _StallClock()
        self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child. A later check starts another."""
        if self._child:
            self._child.close()
            self._child = None

    @property
    def pid(self) -> int | None:
        """Of the child, None when there is none."""
        return self._child.pid if self._child else None

    def check(self, images: Iterable[tuple[T, bytes]]) -> Iterator[tuple[T, bytes, CheckResult | ImageRejectedError]]:
        """Each of *images* with what came of it, in their order. Reads ahead of what it yields, within the window."""
        if self._busy:
            raise RuntimeError("one sandbox checks one series of images at a time")
        self._busy = True
        flight: deque[_Job[T]] = deque()
        self._flight = flight  # type: ignore[assignment]
        self._flight_bytes = self._num_open = 0
        try:
            source = iter(images)
            while self._fill(flight, source):
                job = flight[0]
                if job.result and self._child and self._child.num_unsent:
                    self._deliver(self._child.receive(0.0))
                result = self._wait_for(job)  # type: ignore[arg-type]
                flight.popleft()
                self._flight_bytes -= len(job.data)
                yield job.tag, job.data, result
        finally:
            self._busy = False
            if flight:  # the caller has left, or the source failed: nobody takes the results that are under way
                self.close()

    def _fill(self, flight: deque[_Job[T]], source: Iterator[tuple[T, bytes]]) -> bool:
        """Send more images while there is room. False when none is left in flight."""
        limits = self.limits
        while not flight or (len(flight) < limits.window_images and self._flight_bytes < limits.window_bytes):
            try:
                tag, data = next(source)
            except StopIteration:
                break
            job = _Job(tag, data)
            flight.append(job)
            self._flight_bytes += len(data)
            if not data:
                job.result = ImageRejectedError("empty")
                continue
            self._num_open += 1
            if self._child:
                self._child.send(data)
        return bool(flight)

    def _wait_for(self, job: _Job[object]) -> CheckResult | ImageRejectedError:
        while job.result is None:
            child = self._child or self._start()
            bodies = self._receive(child)
            if bodies is not None:
                self._deliver(bodies)
                if child.ended and job.result is None:
                    self._after_death(child)
            elif fault := self._tick(child, job):
                self._end_of_try(job, fault)
        return job.result

    def _receive(self, child: ChildProcess) -> list[memoryview] | None:
        """Bodies that came from *child*; None when nothing was sent or received for a tick."""
        bodies = child.receive(0.0)
        if bodies is not None:
            return bodies
        num_sent = self._num_open - child.num_unsent
        if num_sent >= _PLENTY:
            time.sleep(_NAP_SECONDS)
        return child.receive(_TICK_SECONDS, for_room=num_sent < _FEW)

    def _deliver(self, bodies: list[memoryview] | None) -> None:
        """Give each of *bodies* to its image: the child answers in order."""
        waiting = (job for job in self._flight if job.result is None)
        job = next(waiting, None) if bodies else None
        for body in bodies or ():
            if job is None:
                raise FailedError("the decoder's process answered out of turn", "run it again")
            self._clock = _StallClock()
            if body[:1] == SIZE:
                (job.num_pixels,) = SIZE_BODY.unpack_from(body, 1)
                continue
            self._settle(job, unpack(body))
            job = next(waiting, None)

    def _settle(self, job: _Job[object], result: CheckResult | ImageRejectedError) -> None:
        job.result = result
        self._num_open -= 1

    def _tick(self, child: ChildProcess, job: _Job[object]) -> str:
        """Nothing came for a tick. Why the image at hand has had its time, or ``outside``; "" when it has not."""
        state, cpu_seconds = child.cpu_time()
        self._clock.tick(state, cpu_seconds)
        allowed = self.limits.seconds + self.limits.seconds_per_megapixel * job.num_pixels / 1e6
        if max(self._clock.ran, self._clock.slept) >= allowed:
            return "decoder-hung"
        stopped = state in "TtZ" and self._clock.idle >= allowed
        return "outside" if stopped or self._clock.idle - self._clock.ran >= _IDLE_SECONDS else ""

    def _after_death(self, child: ChildProcess) -> None:
        self._deliver(child.last_frames())
        job = next((job for job in self._flight if job.result is None), None)
        is_killed = child.close().killed_from_outside
        if job is None or child.num_unsent >= self._num_open:  # it was at no image: it had not got the next one
            self._restart()
        else:
            self._end_of_try(job, "outside" if is_killed else "decoder-crashed")

    def _end_of_try(self, job: _Job[object], reason: str) -> None:
        """The child is gone, or has to go, at *job*: try again or reject it."""
        if reason == "outside":
            job.outside_kills += 1
            if job.outside_kills >= _OUTSIDE_KILLS:
                self._settle(job, ImageRejectedError("decoder-memory", f"killed {job.outside_kills} times"))
        else:
            job.tries += 1
            if job.tries >= self.limits.tries:
                self._settle(job, ImageRejectedError(reason, f"{job.tries} times"))
        self._restart()

    def _restart(self) -> None:
        """End the child; the next is started when it is waited for."""
        self.close()
        self._clock = _StallClock()

    def _start(self) -> ChildProcess:
        """A new child, with all the images in flight that have no result."""
        settings = ChildSettings(self.limits.memory_bytes, self.options)
        for _ in range(_STARTS):
            if child := _start_child(settings):
                break
        else:
            raise FailedError(f"the decoder's process was killed {_STARTS} times while it started", "see who kills it")
        self._child, self._clock = child, _StallClock()
        for job in self._flight:
            if job.result is None:
                job.num_pixels = 0
                child.send(job.data)
        return child


def _start_child(settings: ChildSettings) -> ChildProcess | None:
    """A child that is ready; None when it was killed from outside before. Raises FailedError."""
    try:
        child = ChildProcess.start(_PROGRAM, [settings.to_json()])
    except OSError as error:
        raise _no_start(str(error)) from None
    try:
        if _wait_until_ready(child):
            return child
    except BaseException:
        child.close()
        raise
    result = child.close()
    if result.killed_from_outside:
        return None
    raise _no_start(result.last_line)


def _wait_until_ready(child: ChildProcess) -> bool:
    for _ in range(_START_TICKS):
        if READY in (child.receive(_START_TICK_SECONDS) or ()):
            return True
        if child.ended:
            break
    return False


def _no_start(reason: str) -> FailedError:
    return FailedError(f"the decoder's process cannot start: {reason}", "check the installation and the memory limit")


def shared_sandbox(options: CheckOptions) -> Sandbox:
    """The sandbox of this process for *options*, started at its first check and ended with the process."""
    return _shared(os.getpid(), options)


@cache
def _shared(pid: int, options: CheckOptions) -> Sandbox:  # by pid: a forked child must not use its parent's pipes
    sandbox = Sandbox(options)
    atexit.register(sandbox.close)
    return sandbox
