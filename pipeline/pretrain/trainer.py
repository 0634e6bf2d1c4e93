"""The audit of a training: it outlasts a store that takes nothing for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from pipeline.pretrain.objectives.objective import build_objective
from pipeline.pretrain.objectives.recipe import pretraining_flops_per_image
from pipeline.pretrain.plan import architecture, joined
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import RunCard, read_run_card, run_prefix
from pipeline.stream.audit import AuditLog
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.train.device import measured_peak
from pipeline.train.diagnostics import TrainDiagnostics, guessing_loss
from pipeline.train.distributed import AsyncAllReduce, ProcessGroup, gather_full_state, new_group
from pipeline.train.engine import DeepSpeedEngine
from pipeline.train.heartbeat import DATA, ENDING, FIRST_STEP, SAVING, STEP, RankHeartbeat
from pipeline.train.loop import LoopPlan, train
from pipeline.train.metrics import COUNT, MetricsLogger, ModelFlops, StepTimer, TensorBoardWriter
from pipeline.train.preemption import INTERRUPT, StopSignal
from pipeline.train.rank_log import RankLogHandler

_log = logging.getLogger(__name__)


class BestEffortAudit(AuditLog):
    """An AuditLog whose rows stay in memory until the store takes them."""

    def __init__(
        self, store: Store, run: str, attempt: str, world: World, position: int, patient: BestEffortWriter
    ) -> None:
        super().__init__(store, run, attempt, world, position)
        self._patient = patient

    def flush(self) -> None:
        """See AuditLog; raises nothing."""
        self._patient.stored(super().flush)


_SAVE_MARGIN = 1.5  # a checkpoint is begun when it has this much of the time that the last one took
_CONTEXT = 2  # numbers that are exchanged beside those of the pace: wish to stop, seconds left of it


@dataclass
class Trainer:
    """Trains *recipe*, whose ``steps`` are those that the run has, as attempt *attempt*. Every rank makes one."""

    workspace: Store
    stores: Stores
    recipe: PretrainRecipe
    collective: Collective
    attempt: str
    pulse: RankHeartbeat
    stop: StopSignal
    log: RankLogHandler
    audit: BestEffortAudit | None = field(default=None, init=False)

    def train(self) -> int:
        """To the last step, or until a stop is agreed on; how many steps are done. Raises InterruptedRunError."""
        recipe, world = self.recipe, self.collective.world
        run = read_run_card(self.workspace, recipe.run)
        with ExitStack() as stack:
            weights = recipe.dataset_weights
            readers = open_readers(self.workspace, weights, recipe.stream, world)
            for reader in readers:
                stack.callback(reader.close)
            data = joined([reader.card for reader in readers], list(weights.values()))
            self.architecture, self.class_names = architecture(recipe, data), data.class_names
            self.objective = build_objective(recipe.objective)
            self.patient = BestEffortWriter(self._say, partial(self.pulse.during, SAVING))
            network = first_network(recipe, self.architecture, self.objective)
            self.engine = DeepSpeedEngine(
                network, recipe.optimizer, recipe.engine, recipe.stream.batch_size, world, has_weight_decay
            )
            saving = SaveContext(
                workspace=self.workspace,
                run=run.name,
                attempt=self.attempt,
                zero_stage=recipe.engine.zero_stage,
                dtype=recipe.engine.precision,
                fingerprint=run.fingerprint,
                dataset_digest=run.dataset_digest,
                code_version=run.code_version,
                parent=run.parent,
            )
            self.first_step = self._resume(saving, run)
            position = self.first_step * recipe.stream.batch_size
            if recipe.stream.audit:
                self.audit = BestEffortAudit(self.workspace, recipe.run, self.attempt, world, position, self.patient)
            loader = StreamLoader(
                readers,
                recipe.stream,
                seed=recipe.seed,
                world=world,
                position=position,
                weights=list(weights.values()),
                labels=recipe.objective.labels,
                num_classes=self.architecture.num_classes,
                say=self._say,
                audit=self.audit,
            )
            stack.callback(loader.close)
            done = self._loop(loader)
            self.pulse.mark(ENDING, done)
            return done

    def _resume(self, saving: SaveContext, run: RunCard) -> int:
        """The step to go on from: the own run's, else a fork's parent's, else 0, with the weights of ``init``.

        A new run has an untrained checkpoint of step 0, a fork one of its parent's step.
        """
        started = time.monotonic()
        card = resume(saving, self.collective, self.engine)
        self.read_seconds = time.monotonic() - started
        if card is None and self.recipe.init:
            self._begin_with_init(run.init_sha256)
        step = card.step if card else 0
        group = new_group(self.recipe.save_patience_seconds)

        def assemble(source: FragmentSource, kind: str) -> dict[str, Tensor] | None:
            return gather_full_state(source.fragments(), source.shapes(), kind, group)

        self.writer = CheckpointWriter(
            saving,
            ProcessGroup(self.collective.world, group) if group else SingleProcess(),
            assemble,
            self._packed,
            retention=Retention(keep_last=self.recipe.keep_last, keep_every=self.recipe.keep_every),
            max_failed_saves=self.recipe.max_failed_saves,
            patience_seconds=self.recipe.save_patience_seconds,
            say=self._say if self.collective.world.is_first else _log.info,
        )
        if card is None or card.run != saving.run:
            self.pulse.mark(SAVING, step)
            self.writer.save_and_wait(step, step * self.recipe.stream.batch_size, self.engine)
        _log.info("begins at step %d of %d%s", step, self.recipe.steps, f" ({card.run}@{step})" if card else "")
        self.log.flush_to_store()
        return step

    def _begin_with_init(self, sha256: str) -> None:
        """Also where checkpoints were found, and all of them damaged."""

        def begin(vit: ViT) -> None:
            load_initial_weights(vit, self.class_names, self.workspace, self.stores, self.recipe, sha256)

        self.engine.load(InitialState(first_network(self.recipe, self.architecture, self.objective, begin)))

    def _packed(self, whole: dict[str, Tensor]) -> bytes:
        description = ModelDescription(
            self.architecture, self.recipe.transform.model_dump(mode="json"), self.class_names
        )
        return pack_weights(self.objective.vit_weights(whole), description)

    def _loop(self, loader: StreamLoader) -> int:
        recipe, world = self.recipe, self.collective.world
        batch_size = recipe.stream.batch_size
        schedule = recipe.schedule
        self.sanity = TrainDiagnostics(
            self._say if world.is_first else _log.info,  # what is said is of all ranks, but for labels
            guessing_loss(recipe.objective.name, self.architecture.num_classes),
            schedule.span("warmup", batch_size) // batch_size,
            recipe.max_skipped if recipe.on_nonfinite == "skip" else 0,
        )
        self.pace, self.agreement = StepTimer(), AsyncAllReduce(_CONTEXT + COUNT, recipe.save_patience_seconds)
        self.asked = time.monotonic()
        journal = Journal(self.workspace, f"{run_prefix(recipe.run)}/metrics/{self.attempt}")
        events = TensorBoardWriter(self.workspace, f"{run_prefix(recipe.run)}/tensorboard/{self.attempt}")
        self.watch = MetricsLogger(
            journal if world.is_first else None,
            recipe.log_every,
            batch_size,
            sanity=self.sanity,
            pace=self.pace,
            events=events,
            work=ModelFlops(
                pretraining_flops_per_image(recipe.objective, self.architecture), self._peak() * world.size
            ),
            patient=self.patient,
        )
        plan = LoopPlan(
            first_step=self.first_step,
            num_steps=recipe.steps,
            seed=recipe.seed,
            peak=recipe.optimizer.learning_rate,
            schedule=schedule,
            batch_size=batch_size,
            micro_batch_size=recipe.engine.micro_batch_size,
        )
        try:
            done = train(
                self.engine,
                self._marked(loader),
                self.objective.loss,
                plan,
                world,
                self.watch,
                self._at_step,
                timed=self.pace.timed,
            )
            self.agreement.finish()
            self.writer.close()
        finally:
            self._tell_alarms()
            self.watch.flush()
        return done

    def _peak(self) -> float:
        device = next(self.engine.module.parameters()).device
        return self.recipe.resources.peak_flops or measured_peak(self.engine.dtype, device)

    def _marked(self, loader: StreamLoader) -> Iterator[Batch]:
        """The batches; the pulse and the sanity checks hear of each. The first step of an attempt may compile."""
        for step in range(self.first_step, self.recipe.steps):
            self.pulse.mark(DATA, step)
            batch = next(loader)
            self.pulse.mark(FIRST_STEP if step == self.first_step else STEP, step)
            self.sanity.batch(batch.labels)
            fail_point(f"pretrain.rank-{self.collective.world.rank}.step-{step}")
            yield batch

    def _at_step(self, step: int) -> bool:
        """Whether to stop: the same on every rank."""
        fail_point(f"pretrain.rank-{self.collective.world.rank}.updated-{step}")
        asked_before, self.asked = self.asked, time.monotonic()
        agreed = self.agreement.exchange([self.stop.strength, -self.stop.seconds_left, *self.pace.take()])
        wish = 0.0
        if agreed is not None:
            wish = agreed[0]
            self.pace.absorb(agreed[_CONTEXT:])
        is_last = step == self.recipe.steps
        if is_last or step % self.recipe.checkpoint_every == 0:
            self._save(step, wait=is_last)
        if wish and not is_last and agreed is not None:
            self._leave(step, wish, until=asked_before - agreed[1])
            return True
        return False

    def _save(self, step: int, wait: bool) -> None:
        self.pulse.mark(SAVING, step)
        self.watch.flush()
        if self.audit:
            self.patient.insist()
            self.audit.flush()  # before the card: what a checkpoint has seen is in the log
        position = step * self.recipe.stream.batch_size
        started = time.monotonic()
        if wait:
            self.writer.save_and_wait(step, position, self.engine)
        else:
            self.writer.save(step, position, self.engine)
        _log.info("checkpoint of step %d: training paused for %.3f s", step, time.monotonic() - started)
        self._tell_alarms()
        self.log.flush_to_store()
        self.watch.resume_clock()
        self.pulse.mark(STEP, step)

    def _leave(self, step: int, wish: float, until: float) -> None:
        """Save when it fits into what is left of the grace period, which ends at *until* (``time.monotonic``).

        The first checkpoint of an attempt is taken to last as long as the one that it began with took to be read.
        Raises InterruptedRunError unless we come back.
        """
        self.agreement.finish()
        self.pulse.mark(SAVING, step)
        is_saved = self.writer.wait() and step % self.recipe.checkpoint_every == 0
        needed = _SAVE_MARGIN * (self.writer.write_seconds or self.read_seconds)
        needed, seconds_left = self.collective.broadcast((needed, max(0.0, until - time.monotonic())))
        if is_saved:
            told = f"its checkpoint of step {step} is saved"
        elif needed < seconds_left:
            self._save(step, wait=True)
            told = f"a checkpoint of step {step} was saved"
        else:
            told = f"no time to save step {step}: a checkpoint takes {needed:.0f} s, {seconds_left:.0f} s are left"
        _log.warning("stops at step %d: %s", step, told)
        if wish >= INTERRUPT:
            raise InterruptedRunError(
                f"run {self.recipe.run} was stopped by SIGTERM; {told}", "the same command goes on where it stopped"
            )

    def _tell_alarms(self) -> None:
        for alarm in self.writer.take_alarms():
            if self.collective.world.is_first:
                self._say(alarm)

    def _say(self, text: str) -> None:
        """To the log, and to whoever watches the driver."""
        _log.warning("%s", text)
        self.pulse.say(f"rank {self.collective.world.rank}: {text}")
