"""The scheduler's loop: claim, start, renew, retry, watch, until nothing is left.

One thread. Every claim is made by this process, which renews it while a worker is at it; a worker that dies costs its
call. When this process dies, its workers die with it, and whoever gives the same command again goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pipeline.base.errors import DamageError, InputError, RecipeError, RefusedError, StoreAccessError, VitpipeError
from pipeline.base.progress import Progress
from pipeline.base.retry import RetryPolicy, with_retry
from pipeline.base.store.protocol import Store
from pipeline.checkpoints.retention import hold_steps, release_steps, renew_steps
from pipeline.evaluate.discovery import planner_of, refuse_empty
from pipeline.evaluate.features.extract import single_thread
from pipeline.evaluate.ledger import CLAIM_SECONDS, Ending, Ledger
from pipeline.evaluate.plan import Patterns, PlannedEvaluation, due_evaluations, state_of
from pipeline.evaluate.ray_executor import Ended, Lost, Pool, Share
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.work_queue import Queue
from pipeline.evaluate.worker import FeatureJob, is_prepared, parts_of, run_evaluation, run_feature_job
from pipeline.records.ledger import LEDGER

Result = TypeVar("Result")

PIN_SECONDS = 600.0  # renewed each third of it; who dies holds nothing for longer


class StepHold:
    """The pin of one scheduler on a run. A checkpoint is pinned while any evaluation of it is not done."""

    def __init__(self, workspace: Store, run: str, owner: str, patience: RetryPolicy) -> None:
        self._workspace, self._run, self._owner, self._patience = workspace, run, owner, patience
        self._steps: set[int] = set()
        self._renewed = 0.0

    def hold(self, steps: Iterable[int]) -> set[int]:
        """Pin exactly *steps*; those of them that are gone."""
        wanted = set(steps)
        if wanted == self._steps:
            return set()
        if not wanted:
            self.release()
            return set()
        there = self._do(lambda: hold_steps(self._workspace, self._run, wanted, self._owner, PIN_SECONDS))
        self._steps, self._renewed = wanted, time.monotonic()
        return wanted - set(there)

    def keep(self) -> None:
        """Renew the pin, if it is time to."""
        if self._steps and time.monotonic() - self._renewed > PIN_SECONDS / 3:
            self._renewed = time.monotonic()
            self._do(lambda: renew_steps(self._workspace, self._run, self._owner, PIN_SECONDS))

    def release(self) -> None:
        """Nothing is needed any more."""
        if self._steps:
            self._do(lambda: release_steps(self._workspace, self._run, self._owner))
            self._steps = set()

    def _do(self, request: Callable[[], Result]) -> Result:
        return with_retry(self._workspace, self._patience, f"runs/{self._run}/pins/{self._owner}.json", request)


_TICK_SECONDS = 0.25  # how long nothing but a worker's answer is looked at
_CANCELLED_SECONDS = 5.0  # between two looks at what is not wanted
_OTHERS_SECONDS = (2.0, 30.0)  # between two looks at what others work on: at first, and at most
_FEW = 32  # evaluations that are looked at one by one, instead of listing all
_HEAD_SECONDS = 5.0  # between two looks whether the cluster's head is there
_NO_ROOM_SECONDS = 30.0  # without any worker, before that is said


@dataclass(frozen=True)
class Outcome:
    """What a scheduler has done: what the suite asks for, what is recorded of it, and by this process; what is not.

    ``num_done`` leaves out what was recorded already when its worker came to it: by another scheduler, or by a worker
    of this one that died before it could tell.
    """

    num_planned: int
    num_recorded: int
    num_done: int
    failures: tuple[str, ...]
    cancelled: tuple[str, ...]
    skipped: dict[int, str]


@dataclass(frozen=True)
class _Running:
    """An evaluation that a worker is at, and our claim it was started with."""

    item: PlannedEvaluation
    claim: int
    generation: int


class Every:
    """True once each so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Count from now."""
        self._last = time.monotonic()

    def is_over(self) -> bool:
        """True, and counting anew, when the time is over."""
        if time.monotonic() - self._last < self.seconds:
            return False
        self.reset()
        return True


class Scheduler:
    """Does what is due for a run. With *every_seconds*, looks again so often, until the run is complete.

    *read_recipe* is asked at every look, so that an evaluator that is added to the suite is backfilled; *keep* is given
    each other suite once it could be planned.
    """

    def __init__(
        self,
        workspace: Store,
        run: str,
        read_recipe: Callable[[], EvaluateRecipe],
        progress: Progress,
        every_seconds: float | None = None,
        keep: Callable[[EvaluateRecipe], None] = lambda recipe: None,
    ) -> None:
        self._workspace, self._progress, self._read_recipe = workspace, progress, read_recipe
        self._recipe = recipe = read_recipe()
        self._keep_suite = keep
        self._kept: EvaluateRecipe | None = None  # what was planned by last
        self._is_watching = every_seconds is not None
        self._patience = RetryPolicy(recipe.patience_seconds, progress.say)
        self._ledger = Ledger(workspace, run, self._patience)
        self._planner = planner_of(workspace, run, progress)
        self._pinning = StepHold(workspace, run, f"evaluate-{self._ledger.owner.token[:12]}", self._patience)
        self._queue = Queue(self._is_prepared, self._parts_of, recipe.max_tries)
        self._pool = Pool(Share(recipe.max_parallel, recipe.cpus, recipe.gpus, recipe.resources))
        self._planned: dict[str, PlannedEvaluation] = {}
        self._running: dict[str, _Running] = {}
        self._others: dict[str, PlannedEvaluation] = {}  # others work on them
        self._num_done = self._num_open = 0
        self._look_due = Every(every_seconds or 0.0)
        self._claims_due = Every(CLAIM_SECONDS / 3)
        self._cancelled_due = Every(_CANCELLED_SECONDS)
        self._others_due = Every(_OTHERS_SECONDS[0])
        self._no_room = Every(_NO_ROOM_SECONDS)
        self._head_due = Every(_HEAD_SECONDS)

    def run(self) -> Outcome:
        """Until nothing is left. Raises InputError when there is no checkpoint, or a dataset is missing."""
        try:
            self._look()
            if not self._is_watching:
                refuse_empty(self._planner)
            while not self._is_over():
                self._start()
                for ended in self._pool.wait(_TICK_SECONDS):
                    self._take(ended)
                self._keep()
            self._progress.finish()
            return self._outcome()
        finally:
            self._let_go()

    def _is_over(self) -> bool:
        if self._running or self._others or self._pool.num_running or len(self._queue):
            return False
        return self._planner.is_complete or not self._is_watching

    # -- looking

    def _look(self) -> None:
        """At the recipe, the checkpoints and the ledger."""
        self._planned = {item.id: item for item in self._plan()}
        self._ledger.refresh()
        self._refill()
        if self._pin():
            self._planned = {item.id: item for item in self._plan()}  # without what is gone, which is told
            self._refill()
        self._look_due.reset()
        self._tell()

    def _plan(self) -> list[PlannedEvaluation]:
        """What the suite asks for now; where it cannot be read or planned, as while it is edited, the one before."""
        try:
            recipe = self._read_recipe()
            planned = self._plan_by(recipe)
        except (RecipeError, InputError, DamageError) as error:
            if self._kept is None:
                raise
            self._progress.say(f"the suite cannot be used now, the one before stays: {error}")
            return self._plan_by(self._recipe)
        if recipe != self._kept:
            with_retry(self._workspace, self._patience, LEDGER, lambda: self._keep_suite(recipe))
        self._recipe = self._kept = recipe
        return planned

    def _plan_by(self, recipe: EvaluateRecipe) -> list[PlannedEvaluation]:
        request = lambda: self._planner.plan(recipe, is_watching=self._is_watching)  # noqa: E731 - asked again
        return with_retry(self._workspace, self._patience, "runs", request)

    def _refill(self) -> None:
        """Sort what is planned and not running here into what is due, what waits, and what others work on."""
        now, view, cancelled = time.time(), self._ledger.view, self._ledger.cancelled
        unwanted, later, self._others = Patterns(cancelled), [], {}
        # What runs here may look due: made void elsewhere, or its claim expired while the store was away.
        idle = [item for item in self._planned.values() if item.id not in self._running]
        for item in idle:
            state = state_of(item, view, unwanted, now)
            if state == "waiting":
                failure = view[item.id].failure
                later.append((failure.retry_after or now if failure else now, item))
            elif state == "running":
                self._others[item.id] = item
        self._queue.fill(due_evaluations(idle, view, now, cancelled, self._recipe.priority), later)

    def _pin(self) -> bool:
        """Pin what is still needed; True when some of it was gone by then."""
        open_states = ("due", "waiting", "running")
        unwanted, now = Patterns(self._ledger.cancelled), time.time()
        needed = {
            item.subject.step
            for item in self._planned.values()
            if item.subject.step is not None and state_of(item, self._ledger.view, unwanted, now) in open_states
        }
        return bool(self._pinning.hold(needed))

    def _tell(self) -> None:
        num_open = len(self._queue) + len(self._others) + len(self._running)
        if num_open > self._num_open:
            self._progress.start("evaluate", num_open)
        elif not num_open and not self._num_done and not self._is_watching:
            self._progress.say(f"nothing is due: {len(self._planned)} evaluations are recorded, failed or cancelled")
        self._num_open = num_open

    # -- working

    def _start(self) -> None:
        self._pool.want(self._pool.num_running + len(self._queue))
        while self._pool.num_idle and (task := self._queue.next()) is not None:
            if isinstance(task, FeatureJob):
                self._pool.start(task, task.subject.weights_digest, _prepare, self._workspace, task)
            elif (claim := self._ledger.claim(task.id, task.name)) is None:
                self._others[task.id] = task
            else:
                generation = self._ledger.view[task.id].generation
                self._running[task.id] = _Running(task, claim, generation)
                arguments = (self._workspace, task, generation, self._patience)
                self._pool.start(task.id, task.subject.weights_digest, _perform, *arguments)
        if self._pool.num_idle or self._pool.num_running or not self._pool.is_starting:
            self._no_room.reset()
        elif self._no_room.is_over():
            self._progress.say("waiting for room in the cluster: no worker is up yet")

    def _take(self, ended: Ended) -> None:
        failed = isinstance(ended.outcome, Lost | VitpipeError)
        if isinstance(ended.task, FeatureJob):
            (self._queue.not_made if failed else self._queue.made)(ended.task)
            return
        running = self._running.pop(str(ended.task))
        item = running.item
        if not failed and running.generation == self._ledger.view[item.id].generation:
            self._ledger.recorded(item.id)
            self._num_done += ended.outcome is True
            self._num_open -= 1
            self._progress.advance(note=item.name)
        elif failed and self._holds(running):
            self._failed(item, ended.outcome)
        else:
            self._refill()  # it was made void, or is somebody else's by now: that it may be due again, the ledger tells

    def _holds(self, running: _Running) -> bool:
        return self._ledger.holds(running.item.id, running.claim, running.generation)

    def _failed(self, item: PlannedEvaluation, outcome: Lost | VitpipeError) -> None:
        reason = outcome.reason if isinstance(outcome, Lost) else str(outcome).splitlines()[0]
        failure = self._ledger.end(item.id, _kind(outcome), reason, self._recipe.max_tries)
        if failure.retry_after is None:
            self._num_open -= 1
            self._progress.say(f"{item.name} failed: {reason}")
            self._progress.advance(note=item.name)
        else:
            self._queue.add(item, failure.retry_after)
        if isinstance(outcome, DamageError):
            self._planner.forget(item.subject.step)
            self._look()

    # -- keeping

    def _keep(self) -> None:
        """What has to be done from time to time."""
        if self._head_due.is_over() and (news := self._pool.check_head()):
            self._progress.say(news)
        if self._claims_due.is_over():
            for running in filter(self._holds, self._running.values()):
                self._ledger.renew(running.item.id)
        self._pinning.keep()
        if self._cancelled_due.is_over() and self._ledger.refresh_cancelled():
            self._cancel()
        if self._others and self._others_due.is_over():
            self._look_at_others()
        if self._is_watching and self._look_due.is_over():
            self._look()

    def _cancel(self) -> None:
        """End what is not wanted any more, and take up what is wanted again."""
        unwanted = Patterns(self._ledger.cancelled)
        for running in [one for one in self._running.values() if unwanted.match(one.item.name)]:
            self._pool.stop(running.item.id)
            del self._running[running.item.id]
            self._release(running, "cancelled")
            self._progress.say(f"{running.item.name} is cancelled")
        self._refill()

    def _release(self, running: _Running, reason: str) -> None:
        if self._holds(running):
            self._ledger.end(running.item.id, "released", reason, self._recipe.max_tries)

    def _look_at_others(self) -> None:
        if len(self._others) > _FEW:
            self._ledger.refresh()
        else:
            self._ledger.refresh_some(self._others)
        before = len(self._others)
        self._refill()
        if len(self._others) < before:
            self._progress.advance(before - len(self._others))
            self._num_open -= before - len(self._others)
            self._pin()
        first, longest = _OTHERS_SECONDS
        self._others_due.seconds = first if len(self._others) < before else min(2 * self._others_due.seconds, longest)

    # -- ending

    def _let_go(self) -> None:
        """Give back what is held, so that the next scheduler need not wait; a store that is away is not waited for."""
        self._patience.seconds = 0.0
        self._pool.close()
        with suppress(VitpipeError):
            for running in self._running.values():
                self._release(running, "its scheduler was interrupted")
            self._pinning.release()

    def _outcome(self) -> Outcome:
        now, view, unwanted = time.time(), self._ledger.view, Patterns(self._ledger.cancelled)
        failures, cancelled, recorded = [], [], 0
        for item in self._planned.values():
            state = state_of(item, view, unwanted, now)
            recorded += state == "done"
            if state == "cancelled":
                cancelled.append(item.name)
            failure = view[item.id].failure if item.id in view else None
            if state == "failed" and failure is not None:
                failures.append(f"{item.name}: {failure.reason}")
        return Outcome(
            len(self._planned), recorded, self._num_done, tuple(failures), tuple(cancelled), dict(self._planner.skipped)
        )

    def _is_prepared(self, preparation: FeatureJob) -> bool:
        request = lambda: is_prepared(self._workspace, preparation)  # noqa: E731 - asked again
        return with_retry(self._workspace, self._patience, LEDGER, request)

    def _parts_of(self, preparation: FeatureJob) -> list[int]:
        request = lambda: parts_of(self._workspace, preparation)  # noqa: E731 - asked again
        return with_retry(self._workspace, self._patience, LEDGER, request)


def _kind(outcome: Lost | VitpipeError) -> Ending:
    if isinstance(outcome, Lost | StoreAccessError):
        return "lost"
    return "refused" if isinstance(outcome, RefusedError) else "error"


def _prepare(workspace: Store, preparation: FeatureJob) -> None:
    single_thread()
    run_feature_job(workspace, preparation)


def _perform(workspace: Store, planned: PlannedEvaluation, generation: int, patience: RetryPolicy) -> bool:
    single_thread()
    return run_evaluation(workspace, planned, generation, patience)
