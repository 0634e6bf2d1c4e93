"""WorkQueue: which work starts next: evaluations in their order, and before them the features that they share.

Knows nothing of workers, and asks the store only through the functions that it is given.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.worker import FeatureJob, feature_jobs

Work = PlannedEvaluation | FeatureJob


class WorkQueue:
    """Evaluations that wait for a worker, for a feature job, or for the time of their next try.

    *is_done*: whether the features of a job are stored; *missing_parts*: which of its parts are not. Where
    several parts are missing, they are handed out as single jobs; after they have ended, the complete job is handed
    out, which computes what is still missing and writes the card. A job that failed *max_tries* times is given up: the
    evaluations that need it start without it, and report why they fail.
    """

    def __init__(
        self,
        is_done: Callable[[FeatureJob], bool],
        missing_parts: Callable[[FeatureJob], list[int]],
        max_tries: int,
    ) -> None:
        self._is_done, self._missing_parts, self._max_tries = is_done, missing_parts, max_tries
        self._jobs: dict[str, tuple[FeatureJob, ...]] = {}  # by evaluation
        self._ready: deque[PlannedEvaluation] = deque()
        self._later: list[tuple[float, int, PlannedEvaluation]] = []  # a heap: time, number, evaluation
        self._parked: dict[str, tuple[PlannedEvaluation, set[Hashable]]] = {}  # by id: the jobs that it waits for
        self._waiting_for: dict[Hashable, list[str]] = defaultdict(list)  # by job: ids of evaluations
        self._open_jobs: deque[FeatureJob] = deque()  # to be handed out
        self._running: set[Hashable] = set()  # jobs that are handed out, or whose parts are
        self._finished: set[Hashable] = set()  # jobs whose features are stored, or that are given up
        self._parts_left: Counter[Hashable] = Counter()
        self._tries: Counter[Hashable] = Counter()
        self._number = itertools.count()

    def __len__(self) -> int:
        """All that is still to be handed out, now or later."""
        return len(self._ready) + len(self._open_jobs) + len(self._parked) + len(self._later)

    def fill(self, due: Iterable[PlannedEvaluation], later: Iterable[tuple[float, PlannedEvaluation]]) -> None:
        """Replace what waits by *due*, in this order, and each of *later* at its time (seconds since 1970)."""
        due, later = list(due), list(later)
        self._jobs = feature_jobs([*due, *(evaluation for _, evaluation in later)])
        self._ready = deque(due)
        # Parts stay, and a complete job whose parts have ended: it counts as running, so nothing else would open it.
        self._open_jobs = deque(job for job in self._open_jobs if job.part is not None or job.id in self._running)
        self._parked.clear()
        self._waiting_for.clear()
        self._later = [(at, next(self._number), evaluation) for at, evaluation in later]
        heapq.heapify(self._later)

    def add(self, evaluation: PlannedEvaluation, at: float = 0.0) -> None:
        """One more evaluation, to be handed out from *at* on (seconds since 1970)."""
        heapq.heappush(self._later, (at, next(self._number), evaluation))

    def next(self) -> Work | None:
        """What to start now; None: nothing."""
        now = time.time()
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        while self._ready and not self._open_jobs:
            evaluation = self._ready.popleft()
            missing = [job for job in self._jobs.get(evaluation.id, ()) if self._is_missing(job)]
            if not missing:
                return evaluation
            self._park(evaluation, missing)
        if self._open_jobs:
            return self._hand_out(self._open_jobs.popleft())
        return None

    def job_done(self, job: FeatureJob) -> None:
        """The features of *job* are stored: what waited for them comes next, in its order."""
        if job.part is not None:
            self._part_ended(job)
            return
        self._running.discard(job.id)
        self._finished.add(job.id)
        freed = []
        for evaluation_id in self._waiting_for.pop(job.id, []):
            evaluation, waits = self._parked[evaluation_id]
            waits.discard(job.id)
            if not waits:
                del self._parked[evaluation_id]
                freed.append(evaluation)
        self._ready.extendleft(reversed(freed))

    def job_failed(self, job: FeatureJob) -> None:
        """*job* failed: it is handed out once more, or given up."""
        if job.part is not None:
            self._part_ended(job)  # the complete job computes what is missing
            return
        self._running.discard(job.id)
        self._tries[job.id] += 1
        if self._tries[job.id] >= self._max_tries:
            self.job_done(job)
        elif job.id in self._waiting_for:
            self._open_jobs.append(job)

    def _is_missing(self, job: FeatureJob) -> bool:
        if job.id in self._finished:
            return False
        if job.id not in self._running and self._is_done(job):
            self._finished.add(job.id)
            return False
        return True

    def _park(self, evaluation: PlannedEvaluation, missing: list[FeatureJob]) -> None:
        self._parked[evaluation.id] = (evaluation, {job.id for job in missing})
        for job in missing:
            is_new = job.id not in self._waiting_for and job.id not in self._running
            self._waiting_for[job.id].append(evaluation.id)
            if is_new:
                self._open_jobs.append(job)

    def _hand_out(self, job: FeatureJob) -> FeatureJob:
        """*job*, or the first of its parts, where several are missing; the others are handed out next."""
        is_new = job.id not in self._running
        self._running.add(job.id)
        parts = self._missing_parts(job) if is_new and not self._tries[job.id] else []
        if len(parts) < 2:
            return job
        self._parts_left[job.id] = len(parts)
        first, *rest = (replace(job, part=part) for part in parts)
        self._open_jobs.extendleft(reversed(rest))
        return first

    def _part_ended(self, job: FeatureJob) -> None:
        self._parts_left[job.id] -= 1
        if not self._parts_left[job.id]:
            self._open_jobs.append(replace(job, part=None))
