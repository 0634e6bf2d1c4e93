"""``Transfer``: copies many objects at once; results come in the order of the keys, with rate and time left."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from pipeline.base.errors import FailedError, VitpipeError
from pipeline.base.failpoints import fail_point
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.base.units import format_bytes, format_seconds
from pipeline.corpus.staging.copier import Copier, num_threads
from pipeline.corpus.staging.journal import WINDOW, StageJournal
from pipeline.corpus.staging.manifest import CopiedObject, CopyEntry
from pipeline.corpus.staging.recipe import StageRecipe
from pipeline.records.corpus import Reject

_POLL_SECONDS = 0.5  # how soon a failure of another thread is noticed
_MAX_UNREADABLE = 32  # objects in a row: then it is the store, not the objects


class Transfer:
    """Copies entries from *source* to *target*, as *recipe* says."""

    def __init__(self, source: Store, target: Store, recipe: StageRecipe, progress: Progress) -> None:
        self._source, self._target, self._recipe, self._progress = source, target, recipe, progress
        self._stopped = threading.Event()
        self._failure: VitpipeError | None = None
        self._guard = threading.Lock()
        self._unreadable = 0

    def run(self, entries: Iterator[CopyEntry | CopiedObject], num_bytes: int) -> Iterator[CopiedObject | Reject]:
        """The outcome of each of *entries* (*num_bytes* in all), in their order; those copied before stay as they are.

        Raises what ends the stage: StoreAccessError, FailedError.
        """
        journal = StageJournal(self._target)
        meter = _RateMeter(num_bytes)
        pending: deque[CopiedObject | Future[CopiedObject | Reject]] = deque()
        copier = Copier(self._source, self._target, self._recipe, self._stopped)
        with copier, ThreadPoolExecutor(num_threads(self._recipe), "stage-object") as pool:
            try:
                for entry in entries:
                    if isinstance(entry, CopyEntry):
                        pending.append(pool.submit(self._copy, copier, journal, entry))
                    else:
                        pending.append(entry)
                    if len(pending) >= WINDOW:
                        yield self._next(pending, meter, copier)
                while pending:
                    yield self._next(pending, meter, copier)
                journal.flush()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                journal.flush()
                raise

    def _next(
        self, pending: deque[CopiedObject | Future[CopiedObject | Reject]], meter: _RateMeter, copier: Copier
    ) -> CopiedObject | Reject:
        first = pending.popleft()
        if isinstance(first, CopiedObject):
            meter.skip(first.num_bytes)
            self._progress.advance(1)
            return first
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                outcome = first.result(_POLL_SECONDS)
            except FutureTimeoutError:
                self._progress.advance(0, meter.note(copier.num_moved))
                continue
            except VitpipeError:
                if not self._stopped.is_set():
                    raise  # an error of this thread, not of one that was stopped
                raise self._failure or FailedError("the stage was stopped") from None
            self._progress.advance(1, meter.note(copier.num_moved))
            return outcome

    def _copy(self, copier: Copier, journal: StageJournal, entry: CopyEntry) -> CopiedObject | Reject:
        try:
            outcome = copier.copy(entry)
            self._count_unreadable(outcome)
            if isinstance(outcome, CopiedObject):
                fail_point("stage.before-journal")
                journal.add(outcome)
                fail_point("stage.after-object")
        except VitpipeError as error:
            with self._guard:
                self._failure = self._failure or error
            self._stopped.set()
            raise
        return outcome

    def _count_unreadable(self, outcome: CopiedObject | Reject) -> None:
        with self._guard:
            is_unreadable = isinstance(outcome, Reject) and outcome.reason == "unreadable"
            self._unreadable = self._unreadable + 1 if is_unreadable else 0
            if self._unreadable >= _MAX_UNREADABLE and isinstance(outcome, Reject):
                raise FailedError(
                    f"{self._source.uri}: {self._unreadable} objects in a row could not be read; {outcome.detail}",
                    "look at the source, then give the same command again",
                )


class _RateMeter:
    """Rate and time left of a copy of *num_bytes*."""

    def __init__(self, num_bytes: int) -> None:
        self._total, self._started = num_bytes, time.monotonic()

    def skip(self, num_bytes: int) -> None:
        """Leave out *num_bytes* that are there already."""
        self._total -= num_bytes

    def note(self, moved: int) -> str:
        """Bytes done, bytes a second, time left."""
        rate = moved / max(time.monotonic() - self._started, 1e-3)
        left = max(self._total - moved, 0)
        time_left = f", {format_seconds(left / rate)} left" if rate and left else ""
        return f"{format_bytes(moved)} of {format_bytes(self._total)}, {format_bytes(int(rate))}/s{time_left}"
