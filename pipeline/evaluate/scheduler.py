"""Scheduler: claims what is due, starts it on workers, renews claims, retries, and watches, until nothing is left.

One thread. Every claim is made by this process, which renews it while a worker runs the evaluation; a worker that dies
costs its call. When this process dies, its workers die with it, and the same command, given again, goes on.
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
from pipeline.evaluate import worker
from pipeline.evaluate.discovery import CheckedRequest, group_by_state, make_planner, refuse_empty
from pipeline.evaluate.features.extract import single_thread
from pipeline.evaluate.ledger import CLAIM_SECONDS, Ending, Ledger, State
from pipeline.evaluate.plan import Patterns, PlannedEvaluation, due_evaluations, state_of
from pipeline.evaluate.ray_executor import ActorPool, CallEnded, PoolLimits, WorkerLost
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.work_queue import WorkQueue
from pipeline.evaluate.worker import FeatureJob
from pipeline.records.ledger import LEDGER

_HOLD_SECONDS = 600.0  # of a hold on steps; renewed each third of it, so that a dead scheduler holds nothing for longer
_OPEN: tuple[State, ...] = ("due", "waiting", "running")
_TICK_SECONDS = 0.25  # for which only workers' answers are waited for
_CANCELLED_SECONDS = 5.0  # between two reads of the cancelled patterns
_ELSEWHERE_SECONDS = (2.0, 30.0)  # between two looks at what other schedulers work on: at first, and at most
_FEW = 32  # evaluations that are looked up one by one, instead of listing all
_HEAD_SECONDS = 5.0  # between two checks whether the cluster's head answers
_NO_ROOM_SECONDS = 30.0  # without any worker, before a message says so

Result = TypeVar("Result")


@dataclass(frozen=True)
class ScheduleSummary:
    """What the suite asks for, how much of it is recorded, in all and by this process, and what is not.

    ``num_done`` leaves out what was recorded already when its worker came to it: by another scheduler, or by a worker
    of this one that died before it could answer.
    """

    num_planned: int
    num_recorded: int
    num_done: int
    failures: tuple[str, ...]
    cancelled: tuple[str, ...]
    skipped: dict[int, str]


@dataclass(frozen=True)
class _Running:
    """An evaluation that a worker runs, and the number of our claim on it."""

    evaluation: PlannedEvaluation
    claim: int
    generation: int


class Scheduler:
    """Does what is due for a run. With *every_seconds*, looks again so often, until the run is complete.

    *read_recipe* is called at every look, so that an evaluator that is added to the suite is backfilled; *on_suite* is
    called with each new suite once it could be planned. *checked*: a check of the same suite, whose recipe and planner
    are used from the start.
    """

    def __init__(
        self,
        workspace: Store,
        run: str,
        read_recipe: Callable[[], EvaluateRecipe],
        progress: Progress,
        every_seconds: float | None = None,
        on_suite: Callable[[EvaluateRecipe], None] = lambda recipe: None,
        checked: CheckedRequest | None = None,
    ) -> None:
        self._workspace, self._progress, self._read_recipe = workspace, progress, read_recipe
        self._recipe = recipe = checked.recipe if checked else read_recipe()
        self._planned_recipe: EvaluateRecipe | None = None  # the last one that could be planned
        self._on_suite = on_suite
        self._is_watching = every_seconds is not None
        self._retry_policy = RetryPolicy(recipe.patience_seconds, progress.message)
        self._ledger = Ledger(workspace, run, self._retry_policy)
        self._planner = checked.planner if checked else make_planner(workspace, run, progress)
        self._planner.report_to(progress)
        self._hold = StepHold(workspace, run, f"evaluate-{self._ledger.owner.token[:12]}", self._retry_policy)
        self._queue = WorkQueue(self._is_job_done, self._missing_parts, recipe.max_tries)
        self._pool = ActorPool(PoolLimits(recipe.max_parallel, recipe.cpus, recipe.gpus, recipe.resources))
        self._planned: dict[str, PlannedEvaluation] = {}
        self._running: dict[str, _Running] = {}
        self._elsewhere: dict[str, PlannedEvaluation] = {}  # other schedulers work on them
        self._num_done = self._num_open = 0
        self._plan_timer = _IntervalTimer(every_seconds or 0.0)
        self._claims_timer = _IntervalTimer(CLAIM_SECONDS / 3)
        self._cancelled_timer = _IntervalTimer(_CANCELLED_SECONDS)
        self._elsewhere_timer = _IntervalTimer(_ELSEWHERE_SECONDS[0])
        self._no_room_timer = _IntervalTimer(_NO_ROOM_SECONDS)
        self._head_timer = _IntervalTimer(_HEAD_SECONDS)

    def run(self) -> ScheduleSummary:
        """Until nothing is left. Raises InputError when there is no checkpoint, or a dataset is missing."""
        try:
            self._refresh()
            if not self._is_watching:
                refuse_empty(self._planner)
            while not self._is_finished():
                self._start_work()
                for ended in self._pool.wait(_TICK_SECONDS):
                    self._handle_ended(ended)
                self._do_periodic_work()
            self._progress.finish()
            return self._summary()
        finally:
            self._close()

    def _is_finished(self) -> bool:
        if self._running or self._elsewhere or self._pool.num_running or len(self._queue):
            return False
        return self._planner.is_complete or not self._is_watching

    # -- planning

    def _refresh(self) -> None:
        """Read the recipe, the checkpoints and the ledger, and sort out what is to be done."""
        self._planned = self._plan()
        self._ledger.refresh()
        self._refill()
        if self._hold_needed_steps():
            self._planned = self._plan()  # without the steps that are gone; the planner reports them
            self._refill()
        self._plan_timer.reset()
        self._report_open()

    def _plan(self) -> dict[str, PlannedEvaluation]:
        """What the suite asks for now; where it cannot be read or planned, as while it is edited, the one before."""
        try:
            recipe = self._read_recipe()
            planned = self._plan_by(recipe)
        except (RecipeError, InputError, DamageError) as error:
            if self._planned_recipe is None:
                raise
            self._progress.message(f"the suite cannot be used now, the one before stays: {error}")
            return self._plan_by(self._recipe)
        if recipe != self._planned_recipe:
            self._with_retry(LEDGER, lambda: self._on_suite(recipe))
        self._recipe = self._planned_recipe = recipe
        return planned

    def _plan_by(self, recipe: EvaluateRecipe) -> dict[str, PlannedEvaluation]:
        planned = self._with_retry("runs", lambda: self._planner.plan(recipe, is_watching=self._is_watching))
        return {evaluation.id: evaluation for evaluation in planned}

    def _refill(self) -> None:
        """Sort what is planned and not running here into what is due, what waits, and what runs elsewhere."""
        now, view, patterns = time.time(), self._ledger.view, self._ledger.cancelled
        cancelled, later, self._elsewhere = Patterns(patterns), [], {}
        # What runs here may look due: made void elsewhere, or its claim expired while the store was away.
        idle = [evaluation for evaluation in self._planned.values() if evaluation.id not in self._running]
        for evaluation in idle:
            state = state_of(evaluation, view, cancelled, now)
            if state == "waiting":
                failure = view[evaluation.id].failure
                later.append((failure.retry_after or now if failure else now, evaluation))
            elif state == "running":
                self._elsewhere[evaluation.id] = evaluation
        self._queue.fill(due_evaluations(idle, view, now, patterns, self._recipe.priority), later)

    def _hold_needed_steps(self) -> bool:
        """Hold the steps that are still needed; True when some of them were gone by then."""
        groups = group_by_state(self._planned.values(), self._ledger)
        steps = {evaluation.model_ref.step for state in _OPEN for evaluation in groups[state]}
        return bool(self._hold.hold(step for step in steps if step is not None))

    def _report_open(self) -> None:
        num_open = len(self._queue) + len(self._elsewhere) + len(self._running)
        if num_open > self._num_open:
            self._progress.start("evaluate", num_open)
        elif not num_open and not self._num_done and not self._is_watching:
            self._progress.message(
                f"nothing is due: {len(self._planned)} evaluations are recorded, failed or cancelled"
            )
        self._num_open = num_open

    # -- running

    def _start_work(self) -> None:
        self._pool.scale_to(self._pool.num_running + len(self._queue))
        while self._pool.num_idle and (work := self._queue.next()) is not None:
            if isinstance(work, FeatureJob):
                self._pool.start(work, work.model_ref.weights_digest, _run_feature_job, self._workspace, work)
            elif (claim := self._ledger.claim(work.id, work.name)) is None:
                self._elsewhere[work.id] = work
            else:
                generation = self._ledger.view[work.id].generation
                self._running[work.id] = _Running(work, claim, generation)
                arguments = (self._workspace, work, generation, self._retry_policy)
                self._pool.start(work.id, work.model_ref.weights_digest, _run_evaluation, *arguments)
        if self._pool.num_idle or self._pool.num_running or not self._pool.is_starting:
            self._no_room_timer.reset()
        elif self._no_room_timer.is_due():
            self._progress.message("waiting for room in the cluster: no worker is up yet")

    def _handle_ended(self, ended: CallEnded) -> None:
        failed = isinstance(ended.outcome, WorkerLost | VitpipeError)
        if isinstance(ended.work, FeatureJob):
            (self._queue.job_failed if failed else self._queue.job_done)(ended.work)
            return
        running = self._running.pop(str(ended.work))
        evaluation = running.evaluation
        if not failed and running.generation == self._ledger.view[evaluation.id].generation:
            self._ledger.recorded(evaluation.id)
            self._num_done += ended.outcome is True
            self._num_open -= 1
            self._progress.advance(note=evaluation.name)
        elif failed and self._owns_claim(running):
            self._handle_failed(evaluation, ended.outcome)
        else:
            self._refill()  # it was made void, or another scheduler has it by now: the ledger knows whether it is due

    def _owns_claim(self, running: _Running) -> bool:
        return self._ledger.holds(running.evaluation.id, running.claim, running.generation)

    def _handle_failed(self, evaluation: PlannedEvaluation, outcome: WorkerLost | VitpipeError) -> None:
        reason = outcome.reason if isinstance(outcome, WorkerLost) else str(outcome).splitlines()[0]
        failure = self._ledger.end(evaluation.id, _ending_of(outcome), reason, self._recipe.max_tries)
        if failure.retry_after is None:
            self._num_open -= 1
            self._progress.message(f"{evaluation.name} failed: {reason}")
            self._progress.advance(note=evaluation.name)
        else:
            self._queue.add(evaluation, failure.retry_after)
        if isinstance(outcome, DamageError):
            self._planner.forget(evaluation.model_ref.step)
            self._refresh()

    # -- what is done from time to time

    def _do_periodic_work(self) -> None:
        if self._head_timer.is_due() and (news := self._pool.check_head()):
            self._progress.message(news)
        if self._claims_timer.is_due():
            for running in filter(self._owns_claim, self._running.values()):
                self._ledger.renew(running.evaluation.id)
        self._hold.renew()
        if self._cancelled_timer.is_due() and self._ledger.refresh_cancelled():
            self._apply_cancelled()
        if self._elsewhere and self._elsewhere_timer.is_due():
            self._look_elsewhere()
        if self._is_watching and self._plan_timer.is_due():
            self._refresh()

    def _apply_cancelled(self) -> None:
        """Stop what is cancelled now, and take up what is no longer cancelled."""
        cancelled = Patterns(self._ledger.cancelled)
        for running in [entry for entry in self._running.values() if cancelled.match(entry.evaluation.name)]:
            self._pool.stop(running.evaluation.id)
            del self._running[running.evaluation.id]
            self._release(running, "cancelled")
            self._progress.message(f"{running.evaluation.name} is cancelled")
        self._refill()

    def _release(self, running: _Running, reason: str) -> None:
        if self._owns_claim(running):
            self._ledger.end(running.evaluation.id, "released", reason, self._recipe.max_tries)

    def _look_elsewhere(self) -> None:
        """See what other schedulers have ended; the less they end, the rarer the looks."""
        if len(self._elsewhere) > _FEW:
            self._ledger.refresh()
        else:
            self._ledger.refresh_some(self._elsewhere)
        before = len(self._elsewhere)
        self._refill()
        ended = before - len(self._elsewhere)
        if ended > 0:
            self._progress.advance(ended)
            self._num_open -= ended
            self._hold_needed_steps()
        first, longest = _ELSEWHERE_SECONDS
        self._elsewhere_timer.seconds = first if ended > 0 else min(2 * self._elsewhere_timer.seconds, longest)

    # -- ending

    def _close(self) -> None:
        """Release claims and steps, so that the next scheduler need not wait; a store that is away delays nothing."""
        self._retry_policy.seconds = 0.0
        self._pool.close()
        with suppress(VitpipeError):
            for running in self._running.values():
                self._release(running, "its scheduler was interrupted")
            self._hold.release()

    def _summary(self) -> ScheduleSummary:
        groups = group_by_state(self._planned.values(), self._ledger)
        failures = [(failed.name, self._ledger.view[failed.id].failure) for failed in groups["failed"]]
        return ScheduleSummary(
            num_planned=len(self._planned),
            num_recorded=len(groups["done"]),
            num_done=self._num_done,
            failures=tuple(f"{name}: {failure.reason}" for name, failure in failures if failure is not None),
            cancelled=tuple(evaluation.name for evaluation in groups["cancelled"]),
            skipped=dict(self._planner.skipped),
        )

    def _is_job_done(self, job: FeatureJob) -> bool:
        return self._with_retry(LEDGER, lambda: worker.is_feature_job_done(self._workspace, job))

    def _missing_parts(self, job: FeatureJob) -> list[int]:
        return self._with_retry(LEDGER, lambda: worker.missing_feature_parts(self._workspace, job))

    def _with_retry(self, key: str, request: Callable[[], Result]) -> Result:
        return with_retry(self._workspace, self._retry_policy, key, request)


class StepHold:
    """The lease of one scheduler on steps of a run: a checkpoint is held while any evaluation of it is open."""

    def __init__(self, workspace: Store, run: str, owner: str, retry_policy: RetryPolicy) -> None:
        self._workspace, self._run, self._owner, self._retry_policy = workspace, run, owner, retry_policy
        self._steps: set[int] = set()
        self._renewed = 0.0  # monotonic seconds

    def hold(self, steps: Iterable[int]) -> set[int]:
        """Hold exactly *steps*; returns those of them that are gone."""
        needed = set(steps)
        if needed == self._steps:
            return set()
        if not needed:
            self.release()
            return set()
        existing = self._with_retry(lambda: hold_steps(self._workspace, self._run, needed, self._owner, _HOLD_SECONDS))
        self._steps, self._renewed = needed, time.monotonic()
        return needed - set(existing)

    def renew(self) -> None:
        """Renew the lease, if it is time to."""
        if self._steps and time.monotonic() - self._renewed > _HOLD_SECONDS / 3:
            self._renewed = time.monotonic()
            self._with_retry(lambda: renew_steps(self._workspace, self._run, self._owner, _HOLD_SECONDS))

    def release(self) -> None:
        """No step is needed any more."""
        if self._steps:
            self._with_retry(lambda: release_steps(self._workspace, self._run, self._owner))
            self._steps = set()

    def _with_retry(self, request: Callable[[], Result]) -> Result:
        return with_retry(self._workspace, self._retry_policy, f"runs/{self._run}/pins/{self._owner}.json", request)


class _IntervalTimer:
    """Due once each so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Count from now."""
        self._start = time.monotonic()

    def is_due(self) -> bool:
        """True, and counting anew, when the time is over."""
        if time.monotonic() - self._start < self.seconds:
            return False
        self.reset()
        return True


def _ending_of(outcome: WorkerLost | VitpipeError) -> Ending:
    if isinstance(outcome, WorkerLost | StoreAccessError):
        return "lost"
    return "refused" if isinstance(outcome, RefusedError) else "error"


# These two run on a worker.


def _run_feature_job(workspace: Store, job: FeatureJob) -> None:
    single_thread()
    worker.run_feature_job(workspace, job)


def _run_evaluation(workspace: Store, planned: PlannedEvaluation, generation: int, retry_policy: RetryPolicy) -> bool:
    single_thread()
    return worker.run_evaluation(workspace, planned, generation, retry_policy)
