"""One attempt of one rank: ``assemble`` puts together all that it is made of, a ``Trainer`` takes it to its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pipeline.base.errors import InterruptedRunError
from pipeline.base.failpoints import fail_point
from pipeline.base.journal import Journal
from pipeline.base.retry import BestEffortWriter
from pipeline.base.store.protocol import Store, Stores
from pipeline.base.world import Collective, SingleProcess, World
from pipeline.checkpoints.resume import resume
from pipeline.checkpoints.retention import Retention
from pipeline.checkpoints.save import SaveContext
from pipeline.checkpoints.state import FragmentSource
from pipeline.checkpoints.writer import CheckpointWriter
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.pretrain.initial_weights import InitialState, first_network, load_initial_weights
from pipeline.pretrain.objectives.objective import Objective, build_objective
from pipeline.pretrain.objectives.recipe import pretraining_flops_per_image
from pipeline.pretrain.plan import TrainingPlan
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import CheckpointCard, RunCard, run_prefix
from pipeline.stream.audit import AuditLog
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.train.device import measured_peak
from pipeline.train.diagnostics import TrainDiagnostics, guessing_loss
from pipeline.train.distributed import AsyncAllReduce, ProcessGroup, gather_full_state, new_group
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.heartbeat import DATA, ENDING, FIRST_STEP, SAVING, STEP, RankHeartbeat
from pipeline.train.loop import LoopPlan, Loss, train
from pipeline.train.metrics import NUM_EXCHANGED, MetricsLogger, ModelFlops, StepTimer, TensorBoardWriter
from pipeline.train.preemption import INTERRUPT, StopSignal
from pipeline.train.rank_log import RankLogHandler

_log = logging.getLogger(__name__)

_SAVE_MARGIN = 1.5  # a checkpoint is begun when the time left is so many times what the last one took
_NUM_STOP_VALUES = 2  # exchanged before the numbers of the step timer: strength of the stop signal, -seconds left


class BestEffortAudit(AuditLog):
    """An AuditLog whose rows stay in memory until the store takes them."""

    def __init__(
        self, store: Store, run: str, attempt: str, world: World, position: int, best_effort: BestEffortWriter
    ) -> None:
        super().__init__(store, run, attempt, world, position)
        self._best_effort = best_effort

    def flush(self) -> None:
        """See AuditLog; raises nothing."""
        self._best_effort.write(super().flush)


@dataclass(frozen=True)
class RankContext:
    """Where an attempt runs: its stores, its ranks, its name, and how it is watched, stopped and logged."""

    workspace: Store
    stores: Stores
    collective: Collective
    attempt: str
    heartbeat: RankHeartbeat
    stop: StopSignal
    log: RankLogHandler

    def message(self, text: str) -> None:
        """Show *text* in the log, and to whoever watches the driver."""
        _log.warning("%s", text)
        self.heartbeat.message(f"rank {self.collective.world.rank}: {text}")

    def message_from_first(self, text: str) -> None:
        """As ``message`` on the first rank, for what every rank finds alike; the others only log it."""
        (self.message if self.collective.world.is_first else _log.info)(text)


@dataclass(frozen=True)
class Attempt:
    """All that one attempt of one rank is made of; its engine holds the state of step ``loop.first_step``."""

    rank: RankContext
    recipe: PretrainRecipe  # its ``steps`` are those that the run has
    engine: DeepSpeedEngine
    loss: Loss
    loader: StreamLoader
    audit: BestEffortAudit | None
    checkpoints: CheckpointWriter
    metrics: MetricsLogger
    diagnostics: TrainDiagnostics
    step_timer: StepTimer
    all_reduce: AsyncAllReduce
    best_effort: BestEffortWriter
    loop: LoopPlan
    read_seconds: float  # that the checkpoint took to be read


def assemble(plan: TrainingPlan, run: RunCard, rank: RankContext, resources: ExitStack) -> Attempt:
    """Put together the next attempt of *run*; *resources* will close what it opens. All ranks call it.

    It begins at the newest checkpoint of the run, else at that of a fork's parent, else at step 0 with the weights of
    ``init``, else with drawn ones. A new run gets an untrained checkpoint of step 0 here, a fork one of its parent's
    step. Raises VitpipeError kinds: see ``resume``, ``load_initial_weights`` and ``CheckpointWriter``.
    """
    recipe, world = plan.recipe, rank.collective.world
    readers = open_readers(rank.workspace, recipe.dataset_weights, recipe.stream, world)
    for reader in readers:
        resources.callback(reader.close)
    objective = build_objective(recipe.objective)
    best_effort = BestEffortWriter(rank.message, partial(rank.heartbeat.during, SAVING))
    engine = DeepSpeedEngine(
        first_network(recipe, plan.architecture, objective),
        recipe.optimizer,
        recipe.engine,
        recipe.stream.batch_size,
        world,
        has_weight_decay,
    )
    context = _save_context(recipe, run, rank)
    card, read_seconds = _load_state(engine, context, plan, objective, run, rank)
    checkpoints = _checkpoint_writer(context, plan, objective, rank)
    first_step = card.step if card else 0
    position = first_step * recipe.stream.batch_size
    if card is None or card.run != run.name:
        rank.heartbeat.mark(SAVING, first_step)
        checkpoints.save_and_wait(first_step, position, engine)
    begun = f" ({card.run}@{first_step})" if card else ""
    _log.info("begins at step %d of %d%s", first_step, recipe.steps, begun)
    rank.log.flush_to_store()
    audit = None
    if recipe.stream.audit:
        audit = BestEffortAudit(rank.workspace, recipe.run, rank.attempt, world, position, best_effort)
    loader = StreamLoader(
        readers,
        recipe.stream,
        seed=recipe.seed,
        world=world,
        position=position,
        weights=list(recipe.dataset_weights.values()),
        labels=recipe.objective.labels,
        num_classes=plan.architecture.num_classes,
        on_message=rank.message,
        audit=audit,
    )
    resources.callback(loader.close)
    diagnostics, step_timer = _diagnostics(plan, rank), StepTimer()
    return Attempt(
        rank=rank,
        recipe=recipe,
        engine=engine,
        loss=objective.loss,
        loader=loader,
        audit=audit,
        checkpoints=checkpoints,
        diagnostics=diagnostics,
        step_timer=step_timer,
        all_reduce=AsyncAllReduce(_NUM_STOP_VALUES + NUM_EXCHANGED, recipe.save_patience_seconds),
        metrics=_metrics_logger(plan, rank, engine, diagnostics, step_timer, best_effort),
        best_effort=best_effort,
        loop=LoopPlan(
            first_step=first_step,
            num_steps=recipe.steps,
            seed=recipe.seed,
            peak=recipe.optimizer.learning_rate,
            schedule=recipe.schedule,
            batch_size=recipe.stream.batch_size,
            micro_batch_size=recipe.engine.micro_batch_size,
        ),
        read_seconds=read_seconds,
    )


def _save_context(recipe: PretrainRecipe, run: RunCard, rank: RankContext) -> SaveContext:
    return SaveContext(
        workspace=rank.workspace,
        run=run.name,
        attempt=rank.attempt,
        zero_stage=recipe.engine.zero_stage,
        dtype=recipe.engine.precision,
        fingerprint=run.fingerprint,
        dataset_digest=run.dataset_digest,
        code_version=run.code_version,
        parent=run.parent,
    )


def _load_state(
    engine: DeepSpeedEngine,
    context: SaveContext,
    plan: TrainingPlan,
    objective: Objective,
    run: RunCard,
    rank: RankContext,
) -> tuple[CheckpointCard | None, float]:
    """Fill *engine*: the card of the checkpoint that it has now, or None, and the seconds that reading it took.

    The weights of ``init`` are taken too where checkpoints are there, and all of them are damaged.
    """
    started = time.monotonic()
    card = resume(context, rank.collective, engine)
    read_seconds = time.monotonic() - started
    if card is None and plan.recipe.init:

        def load(vit: ViT) -> None:
            load_initial_weights(vit, plan.data.class_names, rank.workspace, rank.stores, plan.recipe, run.init_sha256)

        engine.load(InitialState(first_network(plan.recipe, plan.architecture, objective, load)))
    return card, read_seconds


def _checkpoint_writer(
    context: SaveContext, plan: TrainingPlan, objective: Objective, rank: RankContext
) -> CheckpointWriter:
    recipe = plan.recipe
    group = new_group(recipe.save_patience_seconds)
    description = ModelDescription(plan.architecture, recipe.transform.model_dump(mode="json"), plan.data.class_names)

    def gather(source: FragmentSource, kind: str) -> dict[str, Tensor] | None:
        return gather_full_state(source.fragments(), source.shapes(), kind, group)

    def pack(weights: dict[str, Tensor]) -> bytes:
        return pack_weights(objective.vit_weights(weights), description)

    return CheckpointWriter(
        context,
        ProcessGroup(rank.collective.world, group) if group else SingleProcess(),
        gather,
        pack,
        retention=Retention(keep_last=recipe.keep_last, keep_every=recipe.keep_every),
        max_failed_saves=recipe.max_failed_saves,
        patience_seconds=recipe.save_patience_seconds,
        on_message=rank.message_from_first,
    )


def _diagnostics(plan: TrainingPlan, rank: RankContext) -> TrainDiagnostics:
    recipe = plan.recipe
    batch_size = recipe.stream.batch_size
    return TrainDiagnostics(
        rank.message_from_first,  # what it finds is of all ranks, but for labels
        guessing_loss(recipe.objective.name, plan.architecture.num_classes),
        recipe.schedule.span("warmup", batch_size) // batch_size,
        recipe.max_skipped if recipe.on_nonfinite == "skip" else 0,
    )


def _metrics_logger(
    plan: TrainingPlan,
    rank: RankContext,
    engine: DeepSpeedEngine,
    diagnostics: TrainDiagnostics,
    step_timer: StepTimer,
    best_effort: BestEffortWriter,
) -> MetricsLogger:
    recipe, prefix = plan.recipe, run_prefix(plan.recipe.run)
    device = next(engine.module.parameters()).device
    journal = Journal(rank.workspace, f"{prefix}/metrics/{rank.attempt}")
    peak_flops = recipe.resources.peak_flops or measured_peak(engine.dtype, device)
    return MetricsLogger(
        journal if rank.collective.world.is_first else None,
        recipe.log_every,
        recipe.stream.batch_size,
        diagnostics=diagnostics,
        step_timer=step_timer,
        events=TensorBoardWriter(rank.workspace, f"{prefix}/tensorboard/{rank.attempt}"),
        model_flops=ModelFlops(
            pretraining_flops_per_image(recipe.objective, plan.architecture),
            peak_flops * rank.collective.world.size,
        ),
        best_effort=best_effort,
    )


class Trainer:
    """Takes *attempt* to its last step, or to where all ranks agree to stop. Every rank makes one, and runs it once."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._exchanged_at = time.monotonic()  # when this rank's numbers of the last step were handed in

    def run(self) -> int:
        """How many steps are done. Raises InterruptedRunError when the run is to stop for good."""
        attempt = self._attempt
        try:
            done = train(
                attempt.engine,
                self._batches(),
                attempt.loss,
                attempt.loop,
                attempt.rank.collective.world,
                attempt.metrics,
                self._at_step,
                timed=attempt.step_timer.timed,
            )
            attempt.all_reduce.finish()
            attempt.checkpoints.close()
        finally:
            self._show_alarms()
            attempt.metrics.flush()
        attempt.rank.heartbeat.mark(ENDING, done)
        return done

    def _batches(self) -> Iterator[Batch]:
        """Those of the loader; heartbeat and diagnostics see each. The first step of an attempt may compile."""
        attempt, rank = self._attempt, self._attempt.rank
        first_step = attempt.loop.first_step
        for step in range(first_step, attempt.loop.num_steps):
            rank.heartbeat.mark(DATA, step)
            batch = next(attempt.loader)
            rank.heartbeat.mark(FIRST_STEP if step == first_step else STEP, step)
            attempt.diagnostics.batch(batch.labels)
            fail_point(f"pretrain.rank-{rank.collective.world.rank}.step-{step}")
            yield batch

    def _at_step(self, step: int) -> bool:
        """Whether to stop: the same on every rank."""
        attempt, stop = self._attempt, self._attempt.rank.stop
        fail_point(f"pretrain.rank-{attempt.rank.collective.world.rank}.updated-{step}")
        exchanged_before, self._exchanged_at = self._exchanged_at, time.monotonic()
        largest = attempt.all_reduce.exchange([stop.strength, -stop.seconds_left, *attempt.step_timer.take()])
        strength = 0.0
        if largest is not None:
            strength = largest[0]
            attempt.step_timer.absorb(largest[_NUM_STOP_VALUES:])
        is_last = step == attempt.recipe.steps
        if is_last or step % attempt.recipe.checkpoint_every == 0:
            self._save(step, wait=is_last)
        if strength and not is_last and largest is not None:
            self._leave(step, strength, until=exchanged_before - largest[1])
            return True
        return False

    def _save(self, step: int, wait: bool) -> None:
        attempt, rank = self._attempt, self._attempt.rank
        rank.heartbeat.mark(SAVING, step)
        attempt.metrics.flush()
        if attempt.audit:
            attempt.best_effort.retry_now()
            attempt.audit.flush()  # before the card: what a checkpoint has seen is in the log
        position = step * attempt.recipe.stream.batch_size
        started = time.monotonic()
        if wait:
            attempt.checkpoints.save_and_wait(step, position, attempt.engine)
        else:
            attempt.checkpoints.save(step, position, attempt.engine)
        _log.info("checkpoint of step %d: training paused for %.3f s", step, time.monotonic() - started)
        self._show_alarms()
        rank.log.flush_to_store()
        attempt.metrics.resume_clock()
        rank.heartbeat.mark(STEP, step)

    def _leave(self, step: int, strength: float, until: float) -> None:
        """Save when it fits into what is left of the grace period, which ends at *until* (``time.monotonic``).

        The first checkpoint of an attempt is taken to last as long as the one that it began with took to be read.
        Raises InterruptedRunError unless the ranks are to begin anew.
        """
        attempt, rank = self._attempt, self._attempt.rank
        attempt.all_reduce.finish()
        rank.heartbeat.mark(SAVING, step)
        is_saved = attempt.checkpoints.wait() and step % attempt.recipe.checkpoint_every == 0
        needed = _SAVE_MARGIN * (attempt.checkpoints.write_seconds or attempt.read_seconds)
        needed, seconds_left = rank.collective.broadcast((needed, max(0.0, until - time.monotonic())))
        if is_saved:
            outcome = f"its checkpoint of step {step} is saved"
        elif needed < seconds_left:
            self._save(step, wait=True)
            outcome = f"a checkpoint of step {step} was saved"
        else:
            outcome = f"no time to save step {step}: a checkpoint takes {needed:.0f} s, {seconds_left:.0f} s are left"
        _log.warning("stops at step %d: %s", step, outcome)
        if strength >= INTERRUPT:
            raise InterruptedRunError(
                f"run {attempt.recipe.run} was stopped by SIGTERM; {outcome}",
                "the same command goes on where it stopped",
            )

    def _show_alarms(self) -> None:
        for alarm in self._attempt.checkpoints.take_alarms():
            if self._attempt.rank.collective.world.is_first:
                self._attempt.rank.message(alarm)
