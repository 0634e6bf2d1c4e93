"""A rank's side of one loader process: its start, its requests, its answers, signs of its life, and its end."""

from __future__ import annotations

import contextlib
import heapq
import logging
import mmap
import os
import select
import socket
import subprocess
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.base import child_process as children
from pipeline.base.errors import FailedError
from pipeline.base.shared_memory import StallDetector, StatusPage
from pipeline.stream.batch import BatchArrays, Replacement, copied
from pipeline.stream.loader_messages import (
    REQUEST,
    BatchDone,
    BatchFailed,
    LogLine,
    Message,
    SharedSettings,
    WorkerSettings,
    unpack_messages,
)

_log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
_PROGRAM = "pipeline.stream.loader_worker"
_STOPPED_SECONDS = 4.0  # a stopped process does not go on by itself: no need to wait for long
_START_SECONDS = 60.0  # to read and run the imports
_READ_BYTES = 1 << 18
_END_SECONDS = 5.0


class WorkerProcess:
    """A running loader process. Raises FailedError when it cannot be started."""

    def __init__(self, shared: SharedSettings) -> None:
        self._layout = shared.settings.layout
        self._stall_seconds = shared.settings.plan.recipe.stall_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        memory = os.memfd_create("vitpipe-loader-batches")
        ours, theirs = socket.socketpair()
        try:
            os.ftruncate(memory, self._layout.num_bytes)
            self._memory = mmap.mmap(memory, self._layout.num_bytes)
            inherited = [theirs.fileno(), memory, shared.descriptor]
            self._process = children.start(
                _PROGRAM,
                [str(number) for number in (os.getpid(), *inherited)],
                errors=self._errors,
                pass_fds=inherited,
            )
        except OSError as error:
            ours.close()
            self._errors.close()
            raise FailedError(f"a loader process cannot start: {error}", "check the limits of this machine") from None
        finally:
            os.close(memory)
            theirs.close()
        self.pid = self._process.pid
        ours.setblocking(False)
        self._socket = ours
        self._unsent, self._received = bytearray(), bytearray()
        self._page = StatusPage(self._memory)
        self._silence = StallDetector(str(self.pid), TICK_SECONDS)
        self.ended = False

    def fileno(self) -> int:
        """To be polled for answers."""
        return self._socket.fileno()

    def ask(self, step: int, slot: int) -> None:
        """Have batch *step* built in *slot*."""
        self._unsent += REQUEST.pack(step, slot)
        self._send()

    def words(self) -> list[Message]:
        """What it has said since the last call. ``ended`` is True when that is its last."""
        self._send()
        while not self.ended:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            self.ended = not data
            self._received += data
        return list(unpack_messages(self._received))

    def batch(self, slot: int) -> BatchArrays:
        """A copy of what it has built in *slot*."""
        return copied(self._layout.slot(self._memory, slot))

    def tick(self) -> str:
        """A tick in which it had work and said nothing: why it has to be replaced, or "" when it has not."""
        self._silence.tick(self._page.beats)
        if self._silence.stopped_seconds >= min(_STOPPED_SECONDS, self._stall_seconds):
            return f"was stopped for {self._silence.stopped_seconds:.0f} s"
        if self._silence.seconds >= (self._stall_seconds if self._page.beats else _START_SECONDS):
            return f"showed no life for {self._silence.seconds:.0f} s"
        return "was stuck" if self._page.stuck else ""

    @property
    def doing(self) -> str:
        """What it is doing, or was when it ended."""
        return self._page.doing

    @property
    def waits(self) -> bool:
        """Whether it waits for a store that does not answer."""
        return self._page.waits

    def end(self) -> tuple[bool, str]:
        """End it, if it has not ended. Whether it was killed from outside, and how it had ended, or its last words."""
        code = self._process.poll()
        if code is None and self.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its socket closes a moment before it is gone
                code = self._process.wait(_END_SECONDS)
        self.kill()
        outside = code is not None and -code in children.KILLED_FROM_OUTSIDE
        words = f"signal {-code}" if code and code < 0 else children.last_stderr_line(self._errors, self._process)
        return outside, words

    def kill(self) -> None:
        """End it at once. Its memory stays for those who still read it."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in a disk is left to the kernel
            self._process.wait(_END_SECONDS)

    def close(self) -> None:
        """End it and let go of all that belongs to it."""
        self.kill()
        self._socket.close()
        self._errors.close()
        self._page.release()
        with contextlib.suppress(BufferError):  # an array over it is still in use: it goes with that
            self._memory.close()

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent and not self.ended:
                try:
                    sent = self._socket.send(self._unsent)
                except ConnectionError:
                    self.ended = True
                    return
                del self._unsent[:sent]


_TRIES, _OUTSIDE_KILLS = 3, 10  # processes that may end at one batch: by its doing; killed or stopped by others
_SAY_SECONDS = 10.0


@dataclass
class BatchQueue:
    """Which batch is with which process, in which of its slots. Knows nothing of processes."""

    next_step: int
    num_workers: int
    num_slots: int
    _free: list[list[int]] = field(init=False)
    _asked: list[dict[int, int]] = field(init=False)  # of each process: step -> slot, not built yet
    _built: dict[int, tuple[int, int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._free = [list(range(self.num_slots)) for _ in range(self.num_workers)]
        self._asked = [{} for _ in range(self.num_workers)]

    def assign(self) -> list[tuple[int, int, int]]:
        """(process, step, slot) of batches to ask for now: the next ones, each of whoever has least to do."""
        asked = []
        while any(self._free):
            open_to = [worker for worker in range(self.num_workers) if self._free[worker]]
            worker = min(open_to, key=lambda number: len(self._asked[number]))
            slot = heapq.heappop(self._free[worker])
            self._asked[worker][self.next_step] = slot
            asked.append((worker, self.next_step, slot))
            self.next_step += 1
        return asked

    def work_of(self, worker: int) -> list[tuple[int, int]]:
        """(step, slot) of what *worker* has to build, in order."""
        return sorted(self._asked[worker].items())

    def built(self, worker: int, step: int) -> None:
        """*worker* has built *step*."""
        self._built[step] = worker, self._asked[worker].pop(step)

    def has(self, step: int) -> bool:
        """Whether *step* is built."""
        return step in self._built

    def place(self, step: int) -> tuple[int, int]:
        """(process, slot) in which *step* stands."""
        return self._built[step]

    def take(self, step: int) -> None:
        """*step* was copied out: its slot is free again."""
        worker, slot = self._built.pop(step)
        heapq.heappush(self._free[worker], slot)

    def with_worker(self, worker: int) -> list[int]:
        """Steps that stand built in the memory of *worker*."""
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
        say: Callable[[str], None] = _log.warning,
    ) -> None:
        self._desk = BatchQueue(first_step, num_workers, settings.layout.num_slots)
        self._say, self._said_at = say, 0.0
        self._answers: dict[int, BatchDone | BatchFailed] = {}
        self._rescued: dict[int, BatchArrays] = {}  # built by a process that is gone
        self._deaths: Counter[tuple[int, bool]] = Counter()
        self._shared = SharedSettings(settings)
        self._processes: list[WorkerProcess] = []
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
            for worker, asked, slot in self._desk.assign():
                self._processes[worker].ask(asked, slot)
            self._listen(0.0)
            if self._desk.has(step):
                return self._taken(step)
            if not self._listen(TICK_SECONDS):
                self._look()

    def _taken(self, step: int) -> BuiltBatch:
        answer = self._answers.pop(step)
        if isinstance(answer, BatchFailed):
            raise answer.error
        worker, slot = self._desk.place(step)
        arrays = self._rescued.pop(step, None) or self._processes[worker].batch(slot)
        self._desk.take(step)
        for key in [key for key in self._deaths if key[0] <= step]:
            del self._deaths[key]
        return BuiltBatch(arrays, answer.replaced)

    def _listen(self, seconds: float) -> bool:
        """Take what processes say, waiting up to *seconds* for it. False when none said anything."""
        ready = {number for number, _ in self._poll.poll(seconds * 1000)}
        for worker, process in enumerate(self._processes):
            if process.fileno() not in ready:
                continue
            for word in process.words():
                self._hear(worker, word)
            if process.ended:
                self._replace(worker, "")
        return bool(ready)

    def _hear(self, worker: int, word: Message) -> None:
        if isinstance(word, LogLine):
            self._say(word.text)
            return
        self._answers[word.step] = word
        self._desk.built(worker, word.step)

    def _look(self) -> None:
        """Nothing was said for a tick: see who still lives, and tell what is waited for."""
        for worker, process in enumerate(self._processes):
            if self._desk.work_of(worker) and (fault := process.tick()):
                self._replace(worker, fault)
        waiting = [process.doing for process in self._processes if process.waits]
        if waiting and time.monotonic() - self._said_at >= _SAY_SECONDS:
            self._said_at = time.monotonic()
            self._say(waiting[0])

    def _replace(self, worker: int, fault: str) -> None:
        """Another in the place of *worker*, which has ended or, by *fault*, has to; it gets the same work."""
        process = self._processes[worker]
        outside, how = process.end()
        for word in process.words():
            self._hear(worker, word)
        for step in self._desk.with_worker(worker):
            if step not in self._rescued and isinstance(self._answers[step], BatchDone):
                self._rescued[step] = process.batch(self._desk.place(step)[1])
        work = self._desk.work_of(worker)
        told = f"loader process {process.pid} {fault or f'ended ({how})'} while {process.doing}"
        if work:
            self._count(work[0][0], outside or fault.startswith("was stopped"), told)
        self._say(f"{told}; another takes its place")
        self._poll.unregister(process.fileno())
        process.close()
        self._processes[worker] = self._start()
        for step, slot in work:
            self._processes[worker].ask(step, slot)

    def _count(self, step: int, outside: bool, told: str) -> None:
        self._deaths[step, outside] += 1
        times = self._deaths[step, outside]
        if times >= (_OUTSIDE_KILLS if outside else _TRIES):
            raise FailedError(f"batch {step} has cost {times} loader processes: {told}", "see what is special there")

    def _start(self) -> WorkerProcess:
        process = WorkerProcess(self._shared)
        self._poll.register(process.fileno(), select.POLLIN)
        return process


def _close(owner: int, processes: list[WorkerProcess], shared: SharedSettings) -> None:
    if os.getpid() != owner:  # a fork of the rank: they are not its own to end
        return
    for process in processes:
        with contextlib.suppress(OSError):
            process.close()
    shared.close()
