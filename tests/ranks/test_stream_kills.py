"""Three epochs over gloo while ranks and loader processes are killed and the world changes: the audit proves O1.

Each rank kills by a seeded list: itself or one of its loader processes, at a step and a moment of it. Whoever dies, the
next attempt goes on at the last stored position, perhaps with another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from pipeline.base.config import build
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.pretrain.plan import make_plan, read_training_data
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.pretrain.run_card import open_run_card
from pipeline.pretrain.worker import run_attempt
from pipeline.records.run import OrderParameters, RunCard, read_run_card
from pipeline.stream.audit import AuditLog
from pipeline.stream.audit_check import AuditResult, check_audit
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from pipeline.train.distributed import current_collective
from tests.support.datasets import make_dataset
from tests.support.ranks import spawn_ranks

SAMPLES, BATCH, EPOCHS, CHECKPOINT_EVERY = 48, 8, 3, 4
STEPS = EPOCHS * SAMPLES // BATCH
RECIPE = StreamRecipe(
    batch_size=BATCH, partitions=4, window=8, augment=AugmentRecipe(size=16), workers=2, stall_seconds=10
)
MOMENTS = ("before the batch", "after the batch", "after the all-reduce", "before the flush", "after the flush")
POSITION, HASHES = "runs/r/position.json", "runs/r/hashes"


@dataclass(frozen=True)
class Kill:
    """At *moment* of *step*, *rank* kills its loader process *worker*, or itself."""

    step: int
    moment: str
    rank: int
    worker: int | None
    signal: int = signal.SIGKILL


@dataclass
class Attempt:
    """One start of the ranks."""

    number: int
    world_size: int
    kills: list[Kill] = field(default_factory=list)


def train(uri: str, attempt: Attempt) -> None:
    """On each rank: from the stored position to the end."""
    store, world, collective = open_store(uri), World.from_environment(), current_collective()
    stored = json.loads(store.read(POSITION)) if world.is_first and store.head(POSITION) else 0
    position = collective.broadcast(stored)
    log = AuditLog(store, "r", f"{attempt.number:04d}", world, position)
    readers = open_readers(store, ["tiny"], RECIPE, world)
    loader = StreamLoader(readers, RECIPE, seed=3, world=world, position=position, audit=log)
    for step in range(position // BATCH, STEPS):

        def reach(moment: str, step: int = step) -> None:
            _kill(uri, attempt, loader, world, step, moment)

        reach("before the batch")
        batch = next(loader)
        assert batch.step == step
        for pid in loader.worker_pids:
            _note(uri, f"pids/{pid}")
        reach("after the batch")
        total = batch.images.sum(dtype=torch.int64)
        dist.all_reduce(total)
        gathered = [pair for pairs in collective.gather(_hashes(batch)) for pair in pairs]
        if world.is_first:
            digest = hashlib.sha256(json.dumps([int(total), sorted(gathered)]).encode()).hexdigest()
            store.put(f"{HASHES}/{step:03d}/{attempt.number:04d}", digest.encode())
        reach("after the all-reduce")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == STEPS:
            reach("before the flush")
            log.flush()
            collective.gather(None)
            reach("after the flush")
            if world.is_first:
                store.put(POSITION, json.dumps(loader.position).encode())
            collective.broadcast(None)
    loader.close()


def _kill(uri: str, attempt: Attempt, loader: StreamLoader, world: World, step: int, moment: str) -> None:
    for kill in attempt.kills:
        if (kill.step, kill.moment, kill.rank) != (step, moment, world.rank):
            continue
        pid = os.getpid() if kill.worker is None else next(iter(loader.worker_pids[kill.worker :]), None)
        if pid:
            _note(uri, f"kills/{attempt.number}-{pid}-{step}")
            os.kill(pid, kill.signal)


def _hashes(batch: Batch) -> list[tuple[int, str]]:
    """(position, digest of pixels, label and origin) of each sample."""
    return [
        (
            position,
            hashlib.sha256(
                batch.images[at].numpy().tobytes()
                + bytes(batch.labels[at : at + 1].numpy())
                + bytes(batch.origins[:, at])
            ).hexdigest(),
        )
        for at, position in enumerate(batch.positions)
    ]


def _note(uri: str, name: str) -> None:
    noted = Path(uri.removeprefix("file://")) / name
    noted.parent.mkdir(exist_ok=True)
    noted.touch()


def noted(store: Store, folder: str) -> list[str]:
    """What ranks noted in *folder*."""
    return [path.name for path in (Path(store.uri.removeprefix("file://")) / folder).iterdir()]


def prepared(folder: Path) -> Store:
    """A workspace with the dataset and the run's card."""
    store = open_store(str(folder))
    dataset = make_dataset(store, "tiny", num_samples=SAMPLES, size=20, max_samples=10)
    card = RunCard(
        name="r",
        fingerprint="",
        fingerprinted={},
        recipe={"dataset": "tiny"},
        dataset_name="tiny",
        dataset_digest=dataset.digest,
        order=OrderParameters(seed=3, partitions=4, window=8, batch_size=BATCH),
        code_version="",
    )
    store.put("runs/r/run.json", card.to_json())
    return store


def hashes_of(store: Store) -> dict[int, set[str]]:
    """What each step has held, over all attempts."""
    found: dict[int, set[str]] = {}
    for info in store.list(f"{HASHES}/"):
        found.setdefault(int(info.key.split("/")[3]), set()).add(store.read(info.key).decode())
    return found


def run_through(store: Store, attempts: list[Attempt]) -> AuditResult:
    """Every attempt in turn: all but the last die. What the audit says."""
    for attempt in attempts[:-1]:
        with pytest.raises(Exception, match=r"SIGKILL|Connection closed|Gloo|connection|recv|peer"):
            spawn_ranks(train, attempt.world_size, store.uri, attempt)
    spawn_ranks(train, attempts[-1].world_size, store.uri, attempts[-1])
    pids = [int(name) for name in noted(store, "pids")]
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    left = [
        pid for pid in pids if psutil.pid_exists(pid) and "loader_worker" in " ".join(psutil.Process(pid).cmdline())
    ]
    assert left == []
    return check_audit(store, "r")


def drawn(seed: int, num_attempts: int, kills_of_workers: int, stops: bool) -> list[Attempt]:
    """Attempts whose worlds go 2 -> 1 -> 2 and so on, each ended by a kill of a rank within its first steps."""
    draw = random.Random(seed)
    attempts, start, end = [], 0, 0
    for number in range(1, num_attempts + 1):
        size = 1 if start // CHECKPOINT_EVERY % 2 else 2
        is_last = number == num_attempts
        end = STEPS - 1 if is_last else min(STEPS - 2, end + draw.randint(1, 2))  # never where nothing is left to do
        attempt = Attempt(number, size)
        for _ in range(kills_of_workers):
            sent = signal.SIGSTOP if stops and draw.random() < 0.2 else signal.SIGKILL
            step = draw.randint(start, end)
            attempt.kills.append(Kill(step, draw.choice(MOMENTS[:3]), draw.randrange(size), draw.randrange(2), sent))
        if not is_last:
            at_flush = (end + 1) % CHECKPOINT_EVERY == 0
            moment = draw.choice(MOMENTS if at_flush else MOMENTS[:3])
            attempt.kills.append(Kill(end, moment, draw.randrange(size), None))
            start = end // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        attempts.append(attempt)
    return attempts


def check_storm(tmp_path: Path, seed: int, attempts: list[Attempt], num_kills: int) -> None:
    """Kills change nothing that is trained on."""
    print(f"seed {seed}: {attempts}")
    calm = prepared(tmp_path / "calm")
    assert run_through(calm, [Attempt(1, 1)]).is_exact
    shaken = prepared(tmp_path / "shaken")
    result = run_through(shaken, attempts)
    assert len(noted(shaken, "kills")) >= num_kills
    assert result.problems == ()
    assert (result.end, result.whole_epochs, result.num_replaced) == (STEPS * BATCH, {"tiny": EPOCHS}, 0)
    assert len({segment.world_size for segment in result.segments}) == 2
    wanted = hashes_of(calm)
    assert len(wanted) == STEPS
    assert hashes_of(shaken) == wanted  # of all attempts, also of what was thrown away


@pytest.mark.timeout(240)
def test_three_epochs_with_kills_and_changes_of_world(tmp_path: Path) -> None:
    attempts = [
        Attempt(1, 2, [Kill(2, MOMENTS[1], 1, 0), Kill(6, MOMENTS[2], 0, None)]),
        Attempt(2, 1, [Kill(5, MOMENTS[0], 0, 1), Kill(11, MOMENTS[4], 0, None)]),
        Attempt(3, 2),
    ]
    check_storm(tmp_path, 0, attempts, num_kills=4)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_three_epochs_with_more_than_thirty_kills(tmp_path: Path) -> None:
    seed = int(os.environ.get("VITPIPE_SEED", "1"))
    attempts = drawn(seed, num_attempts=11, kills_of_workers=4, stops=True)
    check_storm(tmp_path, seed, attempts, num_kills=30)


def pretrain(uri: str) -> None:
    """On each rank: what the stage has it do, without Ray; in two attempts."""
    store = open_store(uri)
    recipe = mixed_recipe(2)
    plan = make_plan(recipe, read_training_data(store, recipe))
    if current_collective().world.is_first:
        open_run_card(store, recipe, plan.data, "code")
    dist.barrier()
    run = read_run_card(store, recipe.run)
    for steps in (3, 7):
        run_attempt(store, {}, plan.with_steps(steps), run, current_collective())


def mixed_recipe(workers: int) -> PretrainRecipe:
    """Two datasets, mixup, loader processes and the audit."""
    size = {"size": 16}
    tree = {
        "run": "mixed",
        "dataset": {"a": 2, "b": 1},
        "steps": 7,
        "model": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "mlp_width": 32, "heads": 2},
        "stream": {"batch_size": 8, "partitions": 4, "augment": size, "mixup": 0.2, "workers": 1, "audit": True},
        "transform": {"size": 16, "resize": 16},
        "schedule": {"warmup_steps": 1},
        "checkpoint_every": 2,
        "workers": workers,
    }
    return build(PretrainRecipe, tree)


@pytest.mark.timeout(240)
def test_a_pretraining_on_a_mixture_that_is_resumed_has_an_exact_audit(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for number, name in enumerate("ab"):
        make_dataset(store, name, num_samples=16, num_classes=4, size=20, max_samples=7, seed=number)
    spawn_ranks(pretrain, 2, store.uri)
    result = check_audit(store, "mixed")
    assert (result.problems, result.end) == ((), 56)
    assert [segment.start for segment in result.segments] == [0, 24]
    assert result.whole_epochs == {"a": 2, "b": 1}
