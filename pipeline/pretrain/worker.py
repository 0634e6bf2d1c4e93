"""What each rank does: begin an attempt, or leave the error that ended it. Ray Train calls ``pretrain_worker``."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist

from pipeline.base.digests import canonical_json
from pipeline.base.errors import FailedError, StoreAccessError, VitpipeError
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store, Stores
from pipeline.base.world import Collective
from pipeline.checkpoints.card import take_attempt
from pipeline.pretrain.plan import TrainingPlan
from pipeline.pretrain.trainer import RankContext, Trainer, assemble
from pipeline.records.run import RunCard, run_prefix
from pipeline.train.distributed import current_collective
from pipeline.train.heartbeat import RankHeartbeat
from pipeline.train.preemption import StopSignal, listening
from pipeline.train.rank_log import RankLogHandler

_log = logging.getLogger(__name__)


def pretrain_worker(config: dict[str, Any]) -> None:
    """Train one rank to the end. *config*: ``workspace``, a URI; ``stores``; ``plan`` and ``run``, as the driver has
    checked and opened them; ``token``, see ``failure_key``; ``supervisor``, the address of the driver's Watchdog.

    A typed error is left in the workspace and the rank returns; where the store takes none, it is raised. Either way
    nothing is restarted (train/ray_executor.py), since a restart would not change it.
    """
    workspace = open_store(config["workspace"], config["stores"])
    plan: TrainingPlan = config["plan"]
    torch.set_num_threads(plan.recipe.resources.threads)
    collective = current_collective()
    error_key = failure_key(plan.recipe.run, config["token"])
    if collective.broadcast(workspace.head(error_key) is not None):
        return  # a rank gave up for a reason that a restart does not change
    try:
        run_attempt(workspace, config["stores"], plan, config["run"], collective, config.get("supervisor", ""))
    except VitpipeError as error:
        is_stored = _store_error(workspace, error_key, error)
        if dist.is_initialized():
            dist.destroy_process_group()  # so that ranks which wait for this one fail now, not after half an hour
        if not is_stored:
            raise


def failure_key(run: str, token: str) -> str:
    """Where a rank leaves the error that ended its attempt, for the driver that made *token* to show.

    One for each driver: what the ranks of a superseded one leave says nothing about those of the newer one.
    """
    return f"{run_prefix(run)}/failures/{token}.json"


def _store_error(workspace: Store, key: str, error: VitpipeError) -> bool:
    """Leave *error* at *key*; whether the store took it. One that went away meanwhile is no refusal (exit code 2)."""
    exit_code = FailedError.exit_code if isinstance(error, StoreAccessError) else error.exit_code
    try:
        workspace.put(key, canonical_json({"exit_code": exit_code, "message": str(error)}).encode())
    except (FailedError, StoreAccessError) as refusal:
        _log.warning("the error that ended this rank is not in the workspace: %s", refusal)
        return False
    return True


def run_attempt(
    workspace: Store, stores: Stores, plan: TrainingPlan, run: RunCard, collective: Collective, supervisor: str = ""
) -> int:
    """One attempt of this rank at *run*: log, heartbeat, signals, and training; how many steps are done.

    *supervisor*: the address of the driver's Watchdog; "": there is none. Raises VitpipeError kinds:
    InterruptedRunError when the rank was stopped from outside.
    """
    world = collective.world
    attempt = collective.broadcast(take_attempt(workspace, run.name) if world.is_first else None)
    stop = StopSignal(plan.recipe.grace_seconds)
    with (
        RankLogHandler(workspace, f"{run_prefix(run.name)}/logs/{attempt}/rank-{world.rank}.log") as log,
        listening(stop),
    ):

        def on_end(reason: str) -> None:
            _log.error("ends itself: %s", reason)
            log.flush_to_store()

        heartbeat = RankHeartbeat(supervisor, world, attempt, stop.request, on_end)
        try:
            process = socket.gethostname(), os.getpid()
            _log.info("attempt %s, rank %d of %d, %s, pid %d", attempt, world.rank, world.size, *process)
            rank = RankContext(workspace, stores, collective, attempt, heartbeat, stop, log)
            with ExitStack() as resources:
                return Trainer(assemble(plan, run, rank, resources)).run()
        finally:
            heartbeat.close()
