"""What to start next: evaluations in their order, and before them what they share. Knows nothing of workers."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.worker import FeatureJob, preparations

Task = PlannedEvaluation | FeatureJob


class Queue:
    """Evaluations that wait for a worker, for a preparation, or for the time of their next try.

    *is_prepared* asks the store, and *parts_of* which parts are missing: several are handed out one by one, and once
    they have ended the whole, which makes what is still missing. A preparation that failed *max_tries* times is given
    up: the evaluations that want it go without, and tell why they fail.
    """

    def __init__(
        self,
        is_prepared: Callable[[FeatureJob], bool],
        parts_of: Callable[[FeatureJob], list[int]],
        max_tries: int,
    ) -> None:
        self._is_prepared, self._parts_of, self._max_tries = is_prepared, parts_of, max_tries
        self._preparations: dict[str, tuple[FeatureJob, ...]] = {}
        self._parts_left: Counter[Hashable] = Counter()
        self._ready: deque[PlannedEvaluation] = deque()
        self._openings: deque[FeatureJob] = deque()
        self._parked: dict[str, tuple[PlannedEvaluation, set[Hashable]]] = {}  # by id: what it still waits for
        self._waiting_for: dict[Hashable, list[str]] = defaultdict(list)
        self._later: list[tuple[float, int, PlannedEvaluation]] = []
        self._known: set[Hashable] = set()  # preparations that are there, or given up
        self._making: set[Hashable] = set()  # handed out
        self._tries: Counter[Hashable] = Counter()
        self._number = itertools.count()

    def __len__(self) -> int:
        """All that is left to be handed out, now or later."""
        return len(self._ready) + len(self._openings) + len(self._parked) + len(self._later)

    def fill(self, due: Iterable[PlannedEvaluation], later: Iterable[tuple[float, PlannedEvaluation]]) -> None:
        """From here on *due*, in this order, and each of *later* at its time (seconds since 1970)."""
        now, then = list(due), list(later)
        self._preparations = preparations([*now, *(item for _, item in then)])
        self._ready = deque(now)
        # Besides parts, a whole whose parts have ended: it counts as being made, so that nobody opens it again.
        self._openings = deque(one for one in self._openings if one.part is not None or one.id in self._making)
        self._parked.clear()
        self._waiting_for.clear()
        self._later = [(at, next(self._number), item) for at, item in then]
        heapq.heapify(self._later)

    def add(self, item: PlannedEvaluation, at: float = 0.0) -> None:
        """One more, at its time."""
        heapq.heappush(self._later, (at, next(self._number), item))

    def next(self) -> Task | None:
        """What to start now; None: nothing."""
        now = time.time()
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        while self._ready and not self._openings:
            item = self._ready.popleft()
            missing = [one for one in self._preparations.get(item.id, ()) if self._is_missing(one)]
            if not missing:
                return item
            self._park(item, missing)
        if self._openings:
            return self._open(self._openings.popleft())
        return None

    def _open(self, preparation: FeatureJob) -> FeatureJob:
        """What to hand out of it: a part, where there are several."""
        is_new = preparation.id not in self._making
        self._making.add(preparation.id)
        parts = self._parts_of(preparation) if is_new and not self._tries[preparation.id] else []
        if len(parts) < 2:
            return preparation
        self._parts_left[preparation.id] = len(parts)
        first, *rest = (replace(preparation, part=part) for part in parts)
        self._openings.extendleft(reversed(rest))
        return first

    def _part_ended(self, preparation: FeatureJob) -> None:
        self._parts_left[preparation.id] -= 1
        if not self._parts_left[preparation.id]:
            self._openings.append(replace(preparation, part=None))

    def made(self, preparation: FeatureJob) -> None:
        """It is there: what waited for it comes next, in its order."""
        if preparation.part is not None:
            self._part_ended(preparation)
            return
        self._making.discard(preparation.id)
        self._known.add(preparation.id)
        freed = []
        for evaluation_id in self._waiting_for.pop(preparation.id, []):
            item, waits = self._parked[evaluation_id]
            waits.discard(preparation.id)
            if not waits:
                del self._parked[evaluation_id]
                freed.append(item)
        self._ready.extendleft(reversed(freed))

    def not_made(self, preparation: FeatureJob) -> None:
        """It failed: once more, or given up."""
        if preparation.part is not None:
            self._part_ended(preparation)  # the whole makes what is missing
            return
        self._making.discard(preparation.id)
        self._tries[preparation.id] += 1
        if self._tries[preparation.id] >= self._max_tries:
            self.made(preparation)
        elif preparation.id in self._waiting_for:
            self._openings.append(preparation)

    def _is_missing(self, preparation: FeatureJob) -> bool:
        if preparation.id in self._known:
            return False
        if preparation.id not in self._making and self._is_prepared(preparation):
            self._known.add(preparation.id)
            return False
        return True

    def _park(self, item: PlannedEvaluation, missing: list[FeatureJob]) -> None:
        self._parked[item.id] = (item, {one.id for one in missing})
        for one in missing:
            is_new = one.id not in self._waiting_for and one.id not in self._making
            self._waiting_for[one.id].append(item.id)
            if is_new:
                self._openings.append(one)
