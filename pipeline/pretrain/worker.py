"""What each rank does: resume or start, then train, saving every n steps. Ray Train calls ``pretrain_worker``."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import torch
import torch.distributed as dist

from pipeline.base.digests import canonical_json
from pipeline.base.errors import FailedError, StoreAccessError, VitpipeError
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import BucketSettings, Store, Stores
from pipeline.base.world import Collective
from pipeline.checkpoints.card import take_attempt
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.trainer import Trainer
from pipeline.records.run import run_prefix
from pipeline.train.distributed import current_collective
from pipeline.train.heartbeat import RankHeartbeat
from pipeline.train.preemption import StopSignal, listening
from pipeline.train.rank_log import RankLogHandler

_log = logging.getLogger(__name__)


def failure_key(run: str, token: str) -> str:
    """Where a rank leaves the error that ended its attempt, for the driver that made *token* to tell.

    One for each driver: what the ranks of a superseded one leave says nothing about those of the newer one.
    """
    return f"{run_prefix(run)}/failures/{token}.json"


def pretrain_worker(config: dict[str, Any]) -> None:
    """Train one rank to the end. *config*: workspace, stores, recipe as plain JSON; token, see ``failure_key``;
    supervisor, an address for Pulse.

    A typed error is left in the workspace and the rank returns; where the store takes none, it is raised. Either way
    nothing is restarted (launch.py), since a restart would not change it.
    """
    stores = {name: BucketSettings.model_validate(value) for name, value in config["stores"].items()}
    workspace = open_store(config["workspace"], stores)
    recipe = PretrainRecipe.model_validate(config["recipe"])
    torch.set_num_threads(recipe.resources.threads)
    collective = current_collective()
    told_at = failure_key(recipe.run, config["token"])
    if collective.broadcast(workspace.head(told_at) is not None):
        return  # a rank gave up for a reason that a restart does not change
    try:
        work(workspace, stores, recipe, collective, config.get("supervisor", ""))
    except VitpipeError as error:
        is_told = _tell(workspace, told_at, error)
        if dist.is_initialized():
            dist.destroy_process_group()  # so that ranks which wait for this one fail now, not after half an hour
        if not is_told:
            raise


def _tell(workspace: Store, key: str, error: VitpipeError) -> bool:
    """Leave *error* at *key*; whether the store took it. One that went away meanwhile is no refusal (exit code 2)."""
    exit_code = FailedError.exit_code if isinstance(error, StoreAccessError) else error.exit_code
    try:
        workspace.put(key, canonical_json({"exit_code": exit_code, "message": str(error)}).encode())
    except (FailedError, StoreAccessError) as refusal:
        _log.warning("the error that ended this rank is not in the workspace: %s", refusal)
        return False
    return True


def work(workspace: Store, stores: Stores, recipe: PretrainRecipe, collective: Collective, supervisor: str = "") -> int:
    """One attempt of this rank: log, pulse, signals, and training; how many steps are done.

    Raises VitpipeError kinds: InterruptedRunError when it was stopped from outside.
    """
    world = collective.world
    attempt = collective.broadcast(take_attempt(workspace, recipe.run) if world.is_first else None)
    stop = StopSignal(recipe.grace_seconds)
    with (
        RankLogHandler(workspace, f"{run_prefix(recipe.run)}/logs/{attempt}/rank-{world.rank}.log") as log,
        listening(stop),
    ):

        def last_words(reason: str) -> None:
            _log.error("ends itself: %s", reason)
            log.flush_to_store()

        pulse = RankHeartbeat(supervisor, world, attempt, stop.ask, last_words)
        try:
            _log.info("attempt %s, rank %d of %d, %s, pid %d", attempt, world.rank, world.size, *_here())
            return Trainer(workspace, stores, recipe, collective, attempt, pulse, stop, log).train()
        finally:
            pulse.close()


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()
