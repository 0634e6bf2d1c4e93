"""A rank's loader processes: which batch is built by which process, what they answer, who is lost and replaced."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import select
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.base.child_process import ChildExit, ChildProcess
from pipeline.base.errors import FailedError
from pipeline.base.shared_memory import SharedMemory, StallDetector, StatusPage
from pipeline.stream.batch import BatchArrays, Replacement, copied
from pipeline.stream.loader_messages import (
    REQUEST,
    BatchDone,
    BatchFailed,
    LogLine,
    Message,
    SharedSettings,
    WorkerSettings,
    unpack_message,
)

_log = logging.getLogger(__name__)

_PROGRAM = "pipeline.stream.loader_worker"
_TICK_SECONDS = 0.1
_STOPPED_SECONDS = 4.0  # a stopped process does not go on by itself: no need to wait for long
_START_SECONDS = 60.0  # to read and run the imports
_END_SECONDS = 5.0
_MESSAGE_SECONDS = 10.0  # how often it is reported that a store is waited for
_TRIES, _OUTSIDE_KILLS = 3, 10  # processes that may end at one batch: by its doing; killed or stopped by others


@dataclass
class BatchQueue:
    """Which batch is with which process, in which of its slots. Pure: *num_workers* processes are numbers here."""

    next_step: int
    num_workers: int
    num_slots: int
    _free: list[list[int]] = field(init=False)
    _pending: list[dict[int, int]] = field(init=False)  # of each process: step -> slot, not built yet
    _built: dict[int, tuple[int, int]] = field(init=False, default_factory=dict)  # step -> process, slot

    def __post_init__(self) -> None:
        self._free = [list(range(self.num_slots)) for _ in range(self.num_workers)]
        self._pending = [{} for _ in range(self.num_workers)]

    def assign(self) -> list[tuple[int, int, int]]:
        """(process, step, slot) of batches to request now: the next ones, each of the process with least to do."""
        assigned = []
        while any(self._free):
            open_to = [worker for worker in range(self.num_workers) if self._free[worker]]
            worker = min(open_to, key=lambda number: len(self._pending[number]))
            slot = heapq.heappop(self._free[worker])
            self._pending[worker][self.next_step] = slot
            assigned.append((worker, self.next_step, slot))
            self.next_step += 1
        return assigned

    def work_of(self, worker: int) -> list[tuple[int, int]]:
        """(step, slot) of what *worker* has to build, in order."""
        return sorted(self._pending[worker].items())

    def built(self, worker: int, step: int) -> None:
        """*worker* has built *step*."""
        self._built[step] = worker, self._pending[worker].pop(step)

    def has(self, step: int) -> bool:
        """Whether *step* is built."""
        return step in self._built

    def location(self, step: int) -> tuple[int, int]:
        """(process, slot) of *step*, which is built."""
        return self._built[step]

    def take(self, step: int) -> None:
        """*step* was copied out: its slot is free again."""
        worker, slot = self._built.pop(step)
        heapq.heappush(self._free[worker], slot)

    def with_worker(self, worker: int) -> list[int]:
        """Steps that are built, in the memory of *worker*."""
        return sorted(step for step, (owner, _) in self._built.items() if owner == worker)


@dataclass(frozen=True)
class BuiltBatch:
    """A batch in memory of its own."""

    arrays: BatchArrays
    replaced: list[Replacement]


class LoaderPool:
    """*num_workers* loader processes, building from *first_step* on. Not for use by two threads at once."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        first_step: int,
        num_workers: int,
        on_message: Callable[[str], None] = _log.warning,
    ) -> None:
        self._queue = BatchQueue(first_step, num_workers, settings.layout.num_slots)
        self._on_message, self._last_message = on_message, 0.0
        self._answers: dict[int, BatchDone | BatchFailed] = {}
        self._rescued: dict[int, BatchArrays] = {}  # built by a process that is gone
        self._deaths: Counter[tuple[int, bool]] = Counter()
        self._shared = SharedSettings(settings)
        self._processes: list[_WorkerProcess] = []
        self._finalizer = weakref.finalize(self, _close, os.getpid(), self._processes, self._shared)
        self._poll = select.poll()
        for _ in range(num_workers):
            self._processes.append(self._start())

    @property
    def pids(self) -> list[int]:
        """Of the processes that are there now."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End all processes. Nothing can be taken any more."""
        self._finalizer()

    def take(self, step: int) -> BuiltBatch:
        """Batch *step*, which has to be the one after the last that was taken.

        Raises what building it raised, or FailedError when too many processes ended at it.
        """
        while True:
            for worker, assigned, slot in self._queue.assign():
                self._processes[worker].request(assigned, slot)
            self._listen(0.0)
            if self._queue.has(step):
                return self._taken(step)
            if not self._listen(_TICK_SECONDS):
                self._watch()

    def _taken(self, step: int) -> BuiltBatch:
        answer = self._answers.pop(step)
        if isinstance(answer, BatchFailed):
            raise answer.error
        worker, slot = self._queue.location(step)
        arrays = self._rescued.pop(step, None) or self._processes[worker].batch(slot)
        self._queue.take(step)
        for key in [key for key in self._deaths if key[0] <= step]:
            del self._deaths[key]
        return BuiltBatch(arrays, answer.replaced)

    def _listen(self, seconds: float) -> bool:
        """Take what processes send, waiting up to *seconds* for it. False when nothing came."""
        ready = {number for number, _ in self._poll.poll(seconds * 1000)}
        for worker, process in enumerate(self._processes):
            if process.fileno() not in ready:
                continue
            for message in process.messages():
                self._receive(worker, message)
            if process.ended:
                self._replace(worker, "")
        return bool(ready)

    def _receive(self, worker: int, message: Message) -> None:
        if isinstance(message, LogLine):
            self._on_message(message.text)
            return
        self._answers[message.step] = message
        self._queue.built(worker, message.step)

    def _watch(self) -> None:
        """Nothing came for a tick: replace processes that do not go on, and report what is waited for."""
        for worker, process in enumerate(self._processes):
            if self._queue.work_of(worker) and (fault := process.tick()):
                self._replace(worker, fault)
        waiting = [process.activity for process in self._processes if process.is_waiting]
        if waiting and time.monotonic() - self._last_message >= _MESSAGE_SECONDS:
            self._last_message = time.monotonic()
            self._on_message(waiting[0])

    def _replace(self, worker: int, fault: str) -> None:
        """Start another process for *worker*, which has ended or, by *fault*, has to; it gets the same work."""
        process = self._processes[worker]
        result = process.end()
        for message in process.last_messages():
            self._receive(worker, message)
        for step in self._queue.with_worker(worker):
            if step not in self._rescued and isinstance(self._answers[step], BatchDone):
                self._rescued[step] = process.batch(self._queue.location(step)[1])
        work = self._queue.work_of(worker)
        signal = -result.code if result.code and result.code < 0 else 0
        reason = fault or f"ended ({f'signal {signal}' if signal else result.last_line})"
        description = f"loader process {process.pid} {reason} while {process.activity}"
        if work:
            self._count(work[0][0], result.killed_from_outside or fault.startswith("was stopped"), description)
        self._on_message(f"{description}; another takes its place")
        self._poll.unregister(process.fileno())
        process.close()
        self._processes[worker] = self._start()
        for step, slot in work:
            self._processes[worker].request(step, slot)

    def _count(self, step: int, is_outside: bool, description: str) -> None:
        self._deaths[step, is_outside] += 1
        times = self._deaths[step, is_outside]
        if times >= (_OUTSIDE_KILLS if is_outside else _TRIES):
            raise FailedError(
                f"batch {step} has cost {times} loader processes: {description}", "see what is special there"
            )

    def _start(self) -> _WorkerProcess:
        process = _WorkerProcess(self._shared)
        self._poll.register(process.fileno(), select.POLLIN)
        return process


class _WorkerProcess:
    """A running loader process. Raises FailedError when it cannot be started."""

    def __init__(self, shared: SharedSettings) -> None:
        self._layout = shared.settings.layout
        self._stall_seconds = shared.settings.plan.recipe.stall_seconds
        try:
            self._memory = SharedMemory("vitpipe-loader-batches", self._layout.num_bytes)
            try:
                self._child = self._start([self._memory.descriptor, shared.descriptor])
            finally:
                self._memory.close_descriptor()
        except OSError as error:
            raise FailedError(f"a loader process cannot start: {error}", "check the limits of this machine") from None
        self.pid = self._child.pid
        self._page = StatusPage(self._memory.buffer)
        self._stall = StallDetector(str(self.pid), _TICK_SECONDS)

    @staticmethod
    def _start(descriptors: list[int]) -> ChildProcess:
        arguments = [str(number) for number in descriptors]
        return ChildProcess.start(_PROGRAM, arguments, channel="socket", inherit=descriptors, end_seconds=_END_SECONDS)

    def fileno(self) -> int:
        """To be polled for messages."""
        return self._child.fileno()

    def request(self, step: int, slot: int) -> None:
        """Have batch *step* built in *slot*."""
        self._child.send_raw(REQUEST.pack(step, slot))
        self._child.flush()

    def messages(self) -> list[Message]:
        """Those that came since the last call. ``ended`` is True when no more come."""
        return [unpack_message(body) for body in self._child.receive(0.0) or ()]

    def last_messages(self) -> list[Message]:
        """Those that came before its end."""
        return [unpack_message(body) for body in self._child.last_frames()]

    @property
    def ended(self) -> bool:
        """Whether it has closed its side of the socket, or is gone."""
        return self._child.ended

    def batch(self, slot: int) -> BatchArrays:
        """A copy of what it has built in *slot*."""
        return copied(self._layout.slot(self._memory.buffer, slot))

    def tick(self) -> str:
        """A tick in which it had work and sent nothing: why it has to be replaced, or "" when it has not."""
        self._stall.tick(self._page.beats)
        if self._stall.stopped_seconds >= min(_STOPPED_SECONDS, self._stall_seconds):
            return f"was stopped for {self._stall.stopped_seconds:.0f} s"
        if self._stall.seconds >= (self._stall_seconds if self._page.beats else _START_SECONDS):
            return f"showed no life for {self._stall.seconds:.0f} s"
        return "was stuck" if self._page.is_stuck else ""

    @property
    def activity(self) -> str:
        """What it is doing, or was when it ended."""
        return self._page.activity

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a store that does not answer."""
        return self._page.is_waiting

    def end(self) -> ChildExit:
        """End it, if it has not ended. Its messages and its memory can still be read."""
        return self._child.end()

    def close(self) -> None:
        """End it and let go of all that belongs to it."""
        self._child.close()
        self._page.release()
        self._memory.close()


def _close(owner: int, processes: list[_WorkerProcess], shared: SharedSettings) -> None:
    if os.getpid() != owner:  # a fork of the rank: they are not its own to end
        return
    for process in processes:
        with contextlib.suppress(OSError):
            process.close()
    shared.close()
