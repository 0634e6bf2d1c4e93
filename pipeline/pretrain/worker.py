"""What each rank does: resume or start, then train, saving every n steps. Ray Train calls ``pretrain_worker``."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.base.collective import Collective
from pipeline.base.digests import canonical_json
from pipeline.base.errors import VitpipeError
from pipeline.base.journal import Journal
from pipeline.base.seeds import derive
from pipeline.base.store import BucketSettings, Store, open_store
from pipeline.checkpoints.attempts import take_attempt
from pipeline.checkpoints.resume import resume_newest
from pipeline.checkpoints.save import Saving, save_checkpoint
from pipeline.models.vit import ViT, decayed
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.pretrain.data import joined
from pipeline.pretrain.objectives import OBJECTIVES
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run import architecture
from pipeline.records.run import RunCard, read_run_card, run_prefix
from pipeline.stream.audit import AuditLog
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import StreamLoader
from pipeline.train.collective import current_collective
from pipeline.train.engine import DeepSpeedEngine, state_folder
from pipeline.train.loop import LoopPlan, train
from pipeline.train.watch import Watch


def failure_key(run: str) -> str:
    """Where a rank leaves the error that ended an attempt, for the driver to tell."""
    return f"{run_prefix(run)}/failure.json"


def pretrain_worker(config: dict[str, Any]) -> None:
    """Train one rank to the end. *config*: workspace, stores, recipe, all as plain JSON.

    A typed error is left in the workspace and the rank returns, since Ray Train would restart a rank that raises.
    """
    stores = {name: BucketSettings.model_validate(value) for name, value in config["stores"].items()}
    workspace = open_store(config["workspace"], stores)
    recipe = PretrainRecipe.model_validate(config["recipe"])
    torch.set_num_threads(recipe.resources.threads)
    collective = current_collective()
    if collective.broadcast(workspace.head(failure_key(recipe.run)) is not None):
        return  # a rank gave up for a reason that a restart does not change
    try:
        _Rank(workspace, recipe, collective).work()
    except VitpipeError as error:
        told = {"exit_code": error.exit_code, "message": str(error)}
        workspace.put(failure_key(recipe.run), canonical_json(told).encode())
        if dist.is_initialized():
            dist.destroy_process_group()  # so that ranks which wait for this one fail now, not after half an hour


@dataclass
class _Rank:
    workspace: Store
    recipe: PretrainRecipe
    collective: Collective
    audit: AuditLog | None = None

    def work(self) -> None:
        recipe, collective = self.recipe, self.collective
        run = read_run_card(self.workspace, recipe.run)
        weights = recipe.dataset_weights
        readers = open_readers(self.workspace, weights, recipe.stream, collective.world)
        data = joined([reader.card for reader in readers], list(weights.values()))
        self.architecture, self.class_names = architecture(recipe, data), data.class_names
        self.engine = DeepSpeedEngine(
            ViT(self.architecture, seed=derive(recipe.seed, "weights")),
            recipe.optimizer,
            recipe.engine,
            recipe.stream.batch_size,
            collective.world,
            decayed,
        )
        attempt = collective.broadcast(take_attempt(self.workspace, recipe.run) if collective.world.is_first else None)
        self.saving = self._saving(run, attempt)
        first_step, position = self._resume()
        if recipe.stream.audit:
            self.audit = AuditLog(self.workspace, recipe.run, attempt, collective.world, position)
        loader = StreamLoader(
            readers,
            recipe.stream,
            seed=recipe.seed,
            world=collective.world,
            position=position,
            weights=list(weights.values()),
            audit=self.audit,
        )
        journal = Journal(self.workspace, f"{run_prefix(recipe.run)}/metrics/{attempt}")
        watch = Watch(journal if collective.world.is_first else None, recipe.log_every, recipe.stream.batch_size)
        plan = LoopPlan(
            first_step=first_step,
            num_steps=recipe.steps,
            seed=recipe.seed,
            peak=recipe.optimizer.learning_rate,
            schedule=recipe.schedule,
            batch_size=recipe.stream.batch_size,
            micro_batch_size=recipe.engine.micro_batch_size,
        )
        at_step = partial(self._save_when_due, watch)
        try:
            train(self.engine, loader, OBJECTIVES[recipe.objective], plan, collective.world, watch, at_step)
        finally:
            loader.close()
            for reader in readers:
                reader.close()

    def _saving(self, run: RunCard, attempt: str) -> Saving:
        return Saving(
            workspace=self.workspace,
            run=run.name,
            attempt=attempt,
            zero_stage=self.recipe.engine.zero_stage,
            dtype=self.recipe.engine.precision,
            fingerprint=run.fingerprint,
            dataset_digest=run.dataset_digest,
            code_version=run.code_version,
        )

    def _resume(self) -> tuple[int, int]:
        """(step, stream position) to go on from; an untrained checkpoint of step 0 is made when there is none."""
        with tempfile.TemporaryDirectory(prefix="vitpipe-resume-") as scratch:
            folder = Path(scratch)
            card = resume_newest(self.saving, self.collective, state_folder(folder))
            if card is None:
                self._save(0)
                return 0, 0
            self.engine.read_state(folder)
            return card.step, card.position

    def _save_when_due(self, watch: Watch, step: int) -> None:
        if step % self.recipe.checkpoint_every == 0 or step == self.recipe.steps:
            watch.flush()
            if self.audit:
                self.audit.flush()  # before the card: what a checkpoint has seen is in the log
            self._save(step)
            watch.resume_clock()

    def _save(self, step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="vitpipe-save-") as scratch:
            self.engine.write_state(Path(scratch))
            weights = self.engine.full_weights()
            packed = None
            if self.collective.world.is_first:
                transform = self.recipe.transform.model_dump(mode="json")
                packed = pack_weights(weights, ModelDescription(self.architecture, transform, self.class_names))
            position = step * self.recipe.stream.batch_size
            save_checkpoint(self.saving, self.collective, step, position, Path(scratch), packed)
