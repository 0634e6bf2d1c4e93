"""Whole pretrainings on real gloo ranks without Ray: the parent is the driver and starts all ranks anew."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from pipeline.base.config import build
from pipeline.base.errors import FailedError, StoreAccessError, VitpipeError
from pipeline.base.store import Store, open_store
from pipeline.base.store.local import LocalStore
from pipeline.base.world import Collective, World
from pipeline.pretrain import trainer as rank_module
from pipeline.pretrain.plan import make_plan, read_training_data
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import extend, open_run_card
from pipeline.pretrain.worker import run_attempt
from pipeline.records.run import MetricsRow, checkpoint_card_key, extended, list_steps, read_checkpoint_card
from pipeline.stream.loader import StreamLoader
from pipeline.train.distributed import current_collective
from pipeline.train.watchdog import HangVerdict, Watchdog
from tests.support.datasets import make_dataset
from tests.support.ranks import spawn_ranks

SAMPLES, BATCH = 48, 8
BEFORE, AFTER = "step", "updated"  # moments of a step: its batch is here, or the update is done


@dataclass(frozen=True)
class Fault:
    """At *moment* of *step* on *rank*: ``kill``, ``stop``, ``kill worker``, ``stuck``, ``nan``, ``nan gradient`` or
    ``term``; ``full`` and ``away``: from then on its store refuses what is put, until ``room``.
    """

    kind: str
    rank: int
    step: int
    moment: str = BEFORE


@dataclass(frozen=True)
class Job:
    """A run that the ranks work on, and what happens to it. *parent*, *extend_to*: as the command's options. *damaged*:
    there is a checkpoint of step 4, which is.
    """

    recipe: PretrainRecipe
    faults: tuple[Fault, ...] = ()
    parent: str | None = None
    extend_to: int = 0
    damaged: bool = False


class Refusing(LocalStore):
    """Takes nothing while there is a *refusal*."""

    refusal: VitpipeError | None = None

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        self._check()
        super().put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store."""
        self._check()
        return super().put_if_absent(key, data)

    @contextmanager
    def incoming(self, key: str) -> Iterator[Path]:
        """See Store."""
        self._check()
        with super().incoming(key) as path:
            yield path

    def _check(self) -> None:
        if self.refusal is not None:
            raise self.refusal


_REFUSALS: dict[str, VitpipeError | None] = {
    "full": FailedError("No space left on device"),
    "away": StoreAccessError("the store is away"),
    "room": None,
}


@dataclass
class Told:
    """What the driver heard: (attempt, text), when (``time.monotonic``), and the verdicts. Of each start of the
    ranks, how it ended, "" when well; of each job that came to an end, its error as a text, or "", as rank 0 met it.
    """

    texts: list[tuple[str, str]] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    verdicts: list[HangVerdict] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    outcomes: list[list[str]] = field(default_factory=list)


def recipe_of(run: str, stage: int, **fields: Any) -> PretrainRecipe:
    """A tiny run of 12 steps with dropout, loader processes, every loss logged, and the audit."""
    tree: dict[str, Any] = {
        "run": run,
        "dataset": "tiny",
        "steps": 12,
        "model": {
            "image_size": 16,
            "patch_size": 8,
            "width": 16,
            "depth": 2,
            "mlp_width": 32,
            "heads": 2,
            "dropout": 0.1,
        },
        "stream": {
            "batch_size": BATCH,
            "partitions": 4,
            "window": 8,
            "augment": {"size": 16},
            "workers": 1,
            "audit": True,
        },
        "transform": {"size": 16, "resize": 16},
        "optimizer": {"learning_rate": 0.01, "ema": 0.9},
        "schedule": {"warmup_steps": 2},
        "engine": {"zero_stage": stage, "precision": "bf16" if stage else "fp32"},
        "resources": {"peak_flops": 1e9},
        "checkpoint_every": 4,
        "log_every": 1,
    }
    for name, value in fields.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) and isinstance(tree.get(name), dict) else value
    return build(PretrainRecipe, tree)


def make_workspace(folder: Path) -> Store:
    """With the dataset ``tiny``."""
    store = open_store(str(folder))
    make_dataset(store, "tiny", num_samples=SAMPLES, size=20, max_samples=10)
    return store


def run_through(store: Store, *starts: tuple[int, list[Job]], limit_seconds: float = 240) -> Told:
    """Start ranks as often as *starts* has (world size, jobs to do in turn), with a driver that supervises them."""
    told = Told()

    def hear(attempt: str, text: str) -> None:
        told.texts.append((attempt, text))
        told.heard.append(time.monotonic())

    supervisor = Watchdog(on_message=hear)
    try:
        for world_size, jobs in starts:
            given = (store.uri, jobs, supervisor.address)
            try:
                told.outcomes = spawn_ranks(train_rank, world_size, *given, limit_seconds=limit_seconds)
                told.ends.append("")
            except AssertionError:
                raise
            except Exception as error:
                told.ends.append(str(error))
    finally:
        supervisor.close()
    told.verdicts = supervisor.verdicts
    return told


def train_rank(uri: str, jobs: list[Job], supervisor: str) -> list[str]:
    """On each rank: what ``pretrain_worker`` does for each of *jobs*; how each ended."""
    store, collective = open_store(uri), current_collective()
    assert isinstance(store, LocalStore)
    return [_outcome(Refusing(store.root), job, collective, supervisor) for job in jobs]


def _outcome(store: Refusing, job: Job, collective: Collective, supervisor: str) -> str:
    recipe, run = job.recipe, None
    if collective.world.is_first:
        plan = make_plan(recipe, read_training_data(store, recipe))
        card = open_run_card(store, recipe, plan.data, "code", job.parent)
        if job.extend_to:
            extend(store, card, recipe, job.extend_to)
        run = plan.with_steps(extended(store, card)), card
        if job.damaged:
            store.put(checkpoint_card_key(recipe.run, 4), b"damaged")
    plan, card = collective.broadcast(run)
    with _planted(store, job.faults, collective.world):
        try:
            run_attempt(store, {}, plan, card, collective, supervisor)
        except VitpipeError as error:
            return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _planted(store: Refusing, faults: tuple[Fault, ...], world: World) -> Iterator[None]:
    mine = {f"pretrain.rank-{fault.rank}.{fault.moment}-{fault.step}": fault for fault in faults}
    loaders: list[StreamLoader] = []
    poisons = {"nan": threading.Event(), "nan gradient": threading.Event()}

    class Noted(StreamLoader):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            loaders.append(self)

    def reach(point: str) -> None:
        fault = mine.get(point)
        if fault is None:
            return
        marked = LocalStore(store.root)
        marked.put(f"faults/{fault.kind}-{world.rank}-{os.getpid()}-{fault.step}-{time.monotonic()}", b"")
        if fault.kind in poisons:
            poisons[fault.kind].set()
        elif fault.kind in _REFUSALS:
            store.refusal = _REFUSALS[fault.kind]
        elif fault.kind == "stuck":
            while True:
                time.sleep(1)
        elif fault.kind == "kill worker":
            for pid in loaders[-1].worker_pids:
                os.kill(pid, signal.SIGKILL)
        else:
            number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[fault.kind]
            os.kill(os.getpid(), number)

    made = rank_module.build_objective

    def make(recipe: Any) -> Any:
        objective = made(recipe)

        class Poisoned:
            network, vit_weights = staticmethod(objective.network), staticmethod(objective.vit_weights)

            @staticmethod
            def loss(module: Any, images: Tensor, labels: Tensor) -> Tensor:
                found: Tensor = objective.loss(module, images, labels)
                if poisons["nan gradient"].is_set():
                    poisons["nan gradient"].clear()
                    found.register_hook(lambda gradient: gradient * float("nan"))
                if poisons["nan"].is_set():
                    poisons["nan"].clear()
                    return found * float("nan")
                return found

        return Poisoned()

    with ExitStack() as stack:
        for name, value in (("fail_point", reach), ("StreamLoader", Noted), ("build_objective", make)):
            stack.enter_context(mock.patch.object(rank_module, name, value))
        yield


def losses(store: Store, run: str) -> dict[int, set[tuple[str, str]]]:
    """(loss, gradient norm) in hex of each step, of all attempts that logged it."""
    found: dict[int, set[tuple[str, str]]] = {}
    for row in rows(store, run):
        found.setdefault(row.step, set()).add((row.loss, row.grad_norm))
    return found


def rows(store: Store, run: str) -> list[MetricsRow]:
    """All that was logged."""
    keys = [info.key for info in store.list(f"runs/{run}/metrics/")]
    return [MetricsRow.model_validate_json(line) for key in keys for line in store.read(key).decode().splitlines()]


def final_weights(store: Store, run: str) -> tuple[int, str, str | None]:
    """(step, digests of the weights and of the moving average) of the newest checkpoint."""
    step = list_steps(store, run)[-1]
    card = read_checkpoint_card(store, run, step)
    return step, card.weights.sha256, card.ema_weights.sha256 if card.ema_weights else None
