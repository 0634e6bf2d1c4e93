"""What each rank does: resume or start, then train, saving every n steps. Ray Train calls ``pretrain_worker``."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import torch
import torch.distributed as dist

from pipeline.base.collective import Collective
from pipeline.base.digests import canonical_json
from pipeline.base.errors import VitpipeError
from pipeline.base.store import BucketSettings, Store, Stores, open_store
from pipeline.checkpoints.attempts import take_attempt
from pipeline.pretrain.rank import Rank
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import run_prefix
from pipeline.train.collective import current_collective
from pipeline.train.heartbeat import Pulse
from pipeline.train.logs import RankLog
from pipeline.train.stopping import Stop, listening

_log = logging.getLogger(__name__)


def failure_key(run: str) -> str:
    """Where a rank leaves the error that ended an attempt, for the driver to tell."""
    return f"{run_prefix(run)}/failure.json"


def pretrain_worker(config: dict[str, Any]) -> None:
    """Train one rank to the end. *config*: workspace, stores, recipe as plain JSON; supervisor, an address for Pulse.

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
        work(workspace, stores, recipe, collective, config.get("supervisor", ""))
    except VitpipeError as error:
        told = {"exit_code": error.exit_code, "message": str(error)}
        workspace.put(failure_key(recipe.run), canonical_json(told).encode())
        if dist.is_initialized():
            dist.destroy_process_group()  # so that ranks which wait for this one fail now, not after half an hour


def work(workspace: Store, stores: Stores, recipe: PretrainRecipe, collective: Collective, supervisor: str = "") -> int:
    """One attempt of this rank: log, pulse, signals, and training; how many steps are done.

    Raises VitpipeError kinds: InterruptedRunError when it was stopped from outside.
    """
    world = collective.world
    attempt = collective.broadcast(take_attempt(workspace, recipe.run) if world.is_first else None)
    stop = Stop(recipe.grace_seconds)
    with RankLog(workspace, f"{run_prefix(recipe.run)}/logs/{attempt}/rank-{world.rank}.log") as log, listening(stop):

        def last_words(reason: str) -> None:
            _log.error("ends itself: %s", reason)
            log.flush_to_store()

        pulse = Pulse(supervisor, world, attempt, stop.ask, last_words)
        try:
            _log.info("attempt %s, rank %d of %d, %s, pid %d", attempt, world.rank, world.size, *_here())
            return Rank(workspace, stores, recipe, collective, attempt, pulse, stop, log).train()
        finally:
            pulse.close()


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()
