"""Loader processes: any number of them gives the same stream, and one that is lost costs time only."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.base.errors import DamageError, FailedError
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.stream.batch import SlotLayout, StreamPlan, open_readers
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.stream.loader_messages import WorkerSettings
from pipeline.stream.loader_pool import BatchQueue, LoaderPool
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.support.datasets import make_dataset
from tests.unit.stream.test_loader_damage import damage, order_of

RECIPE = StreamRecipe(
    batch_size=8, partitions=4, window=6, augment=AugmentRecipe(size=16, crop="none", flip=False), stall_seconds=1.5
)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def loaders() -> Iterator[Callable[..., StreamLoader]]:
    """Makes loaders over dataset ``tiny`` of a workspace; they are closed when the test ends."""
    made = []

    def make(workspace: Store, **fields: Any) -> StreamLoader:
        given = {name: fields.pop(name) for name in ("on_message", "position") if name in fields}
        recipe = RECIPE.model_copy(update={"workers": 2, **fields})
        readers = open_readers(workspace, ["tiny"], recipe, World())
        made.append(StreamLoader(readers, recipe, seed=0, world=World(), **given))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def content(batches: list[Batch]) -> list[tuple[int, bytes, bytes, bytes]]:
    """All that batches hold."""
    return [(b.step, b.images.numpy().tobytes(), b.labels.numpy().tobytes(), b.origins.tobytes()) for b in batches]


def take(loader: StreamLoader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (3, 2)])
def test_any_number_of_processes_gives_the_same_stream(
    tiny_workspace: Store, loaders: Callable[..., StreamLoader], workers: int, ahead: int
) -> None:
    calm = content(take(loaders(tiny_workspace, workers=0), 12))
    batches = take(loaders(tiny_workspace, workers=workers, ahead=ahead), 12)  # kept: their memory is their own
    assert content(batches) == calm


@pytest.mark.parametrize(("sent", "told"), [(signal.SIGKILL, "ended (signal 9)"), (signal.SIGSTOP, "was stopped")])
def test_a_lost_process_is_named_and_its_batches_are_built_again(
    tiny_workspace: Store, loaders: Callable[..., StreamLoader], sent: signal.Signals, told: str
) -> None:
    calm = content(take(loaders(tiny_workspace, workers=0), 16))
    said: list[str] = []
    loader = loaders(tiny_workspace, on_message=said.append)
    batches = take(loader, 3)
    for lost in loader.worker_pids:
        os.kill(lost, sent)
        batches += take(loader, 6)  # what it had built already is used
        assert is_gone(lost)
        assert any(f"loader process {lost} {told}" in line and "while" in line for line in said), said
    batches += take(loader, 1)
    assert content(batches) == calm


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """The shard of a dataset of one shard, made so that who opens it stays there."""
    make_dataset(open_store(str(tmp_path)), "tiny", num_samples=10, size=16, max_samples=10)
    shard = tmp_path / "datasets/tiny/shard-000000.tar"
    shard.rename(tmp_path / "whole.tar")
    os.mkfifo(shard)
    return shard


@pytest.fixture
def pool(hanging: Path, tmp_path: Path) -> Iterator[LoaderPool]:
    """Of one process; without read-ahead, which would hang as well. What it says is in ``pool.said``."""
    recipe = RECIPE.model_copy(update={"workers": 1})
    readers = open_readers(open_store(str(tmp_path)), ["tiny"], recipe, World())
    layout = SlotLayout(recipe.ahead, 8, 16)
    settings = WorkerSettings(tuple(readers), StreamPlan(recipe, 0, World()), layout, stuck_seconds=0.5)
    made = LoaderPool(settings, first_step=0, num_workers=1, on_message=SAID.append)
    SAID.clear()
    yield made
    made.close()


SAID: list[str] = []


def test_a_process_that_is_stuck_is_replaced_and_told_with_what_it_read(
    pool: LoaderPool, hanging: Path, tmp_path: Path
) -> None:
    def mend(line: str) -> None:
        SAID.append(line)
        (tmp_path / "whole.tar").replace(hanging)

    pool._on_message = mend
    (stuck,) = pool.pids
    assert pool.take(0).replaced == []
    (line,) = SAID
    assert line.startswith(f"loader process {stuck} was stuck while reading sample ")
    assert line.endswith(" of shard-000000.tar; another takes its place")


def test_a_batch_that_costs_one_process_after_another_is_given_up(pool: LoaderPool) -> None:
    with pytest.raises(FailedError, match=r"batch 0 has cost 3 loader processes: .* was stuck while reading sample"):
        pool.take(0)
    assert len(SAID) == 2


def test_errors_of_ours_come_back_as_they_are_and_in_turn(tmp_path: Path, loaders: Callable[..., StreamLoader]) -> None:
    store = open_store(str(tmp_path))
    make_dataset(store, "tiny", num_samples=40, size=16, max_samples=10)
    ref = order_of(store).ref(21)
    told = damage(store, ref.shard, ref.row)
    loader = loaders(store)
    assert [batch.step for batch in take(loader, 2)] == [0, 1]
    for _ in range(2):  # asking again gives the same
        with pytest.raises(DamageError, match=f"tiny/{told}"):
            next(loader)
    assert loader.position == 16
    lenient = loaders(store, max_damaged=1)
    (one,) = take(lenient, 3)[2].replaced
    assert (one.position, one.dataset, one.shard) == (21, "tiny", f"shard-{ref.shard:06d}.tar")


def test_nothing_is_left_after_closing_or_forgetting(
    tiny_workspace: Store, loaders: Callable[..., StreamLoader]
) -> None:
    loader = loaders(tiny_workspace)
    take(loader, 1)
    closed = loader.worker_pids
    loader.close()
    assert len(closed) == 2
    assert all(map(is_gone, closed))
    assert loader.worker_pids == []
    assert [batch.step for batch in take(loader, 2)] == [1, 2]  # goes on where it was
    loader.close()
    recipe = RECIPE.model_copy(update={"workers": 1})
    other = StreamLoader(open_readers(tiny_workspace, ["tiny"], recipe, World()), recipe, seed=0, world=World())
    next(other)
    forgotten = other.worker_pids
    del other
    gc.collect()
    assert all(map(is_gone, forgotten))


_PARENT = """
import sys
from pipeline.base.store import open_store
from pipeline.base.world import World
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import StreamLoader
from pipeline.stream.recipe import StreamRecipe
recipe = StreamRecipe(batch_size=8, partitions=4, workers=2)
loader = StreamLoader(open_readers(open_store(sys.argv[1]), ["tiny"], recipe, World()), recipe, seed=0, world=World())
next(loader)
print(*loader.worker_pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_no_process_outlives_its_rank(tiny_workspace: Store, stopped: bool) -> None:
    command = [sys.executable, "-c", _PARENT, tiny_workspace.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        pids = [int(pid) for pid in rank.stdout.readline().split()]
        assert len(pids) == 2
        if stopped:
            os.kill(pids[0], signal.SIGSTOP)
        rank.kill()
    wait_for(lambda: all(map(is_gone, pids)))


def test_the_program_of_the_processes_is_light() -> None:
    heavy = ["torch", "ray", "boto3", "scipy"]
    code = f"import sys, pipeline.stream.loader_worker; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("seed", range(200))
def test_the_desk_hands_out_every_batch_once_and_in_order_whoever_is_lost(seed: int) -> None:
    draw = random.Random(seed)
    workers, slots, first = draw.randint(1, 8), draw.randint(1, 4), draw.randint(0, 50)
    desk = BatchQueue(first, workers, slots)
    asked: list[list[tuple[int, int]]] = [[] for _ in range(workers)]
    step = first
    while step < first + 60:
        for worker, number, slot in desk.assign():
            asked[worker].append((number, slot))
        assert all(len({slot for _, slot in desk.work_of(worker)}) == len(asked[worker]) for worker in range(workers))
        busy = [worker for worker in range(workers) if asked[worker]]
        worker = draw.choice(busy)
        if draw.random() < 0.2:
            assert desk.work_of(worker) == asked[worker]  # what its successor is asked for
        else:
            number, slot = asked[worker].pop(0)
            desk.built(worker, number)
            assert desk.location(number) == (worker, slot)
        while desk.has(step):
            desk.take(step)
            step += 1
