"""The loader processes of a rank: which batch is with which, and what happens when one of them dies or hangs.

Batch t may be built by any of them; batches are given out in order. So any number of processes gives the same stream,
and one that is killed, stopped or stuck costs time only: its batches are asked of another in its place.
"""

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

from pipeline.base.errors import FailedError
from pipeline.stream.batch import BatchArrays, Replacement
from pipeline.stream.worker_child import WorkerSettings
from pipeline.stream.worker_process import TICK_SECONDS, SharedSettings, WorkerProcess
from pipeline.stream.worker_words import Failed, Finished, Said, Word

_log = logging.getLogger(__name__)
_TRIES, _OUTSIDE_KILLS = 3, 10  # processes that may end at one batch: by its doing; killed or stopped by others
_SAY_SECONDS = 10.0


@dataclass
class Desk:
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
        self._desk = Desk(first_step, num_workers, settings.layout.num_slots)
        self._say, self._said_at = say, 0.0
        self._answers: dict[int, Finished | Failed] = {}
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
        if isinstance(answer, Failed):
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

    def _hear(self, worker: int, word: Word) -> None:
        if isinstance(word, Said):
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
            if step not in self._rescued and isinstance(self._answers[step], Finished):
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
