"""Loader processes on the real S3 server: a store that is away is waited for, and nobody is taken for dead."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.local import s3_server as local_s3
from infra.local.s3_server import LocalS3
from pipeline.base.store import Store, open_store
from pipeline.base.world import World
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.support.datasets import make_dataset
from tests.support.far import cached_shards
from tests.support.staging import new_bucket


def content(batches: list[Batch]) -> list[tuple[int, bytes, bytes]]:
    return [(batch.step, batch.images.numpy().tobytes(), batch.origins.tobytes()) for batch in batches]


def small_recipe(access: str = "cached", **changes: Any) -> StreamRecipe:
    """Of 40 images in ten shards, 8 at a time."""
    return StreamRecipe(batch_size=8, partitions=4, window=4, augment=AugmentRecipe(size=16), access=access, **changes)


def new_loader(store: Store, recipe: StreamRecipe, say: Callable[[str], None] | None = None) -> StreamLoader:
    return StreamLoader(open_readers(store, ["tiny"], recipe, World()), recipe, seed=0, world=World(), on_message=say)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for caches of its own, so that nothing is there already."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def calm_batches(store: Store, recipe: StreamRecipe, caches: Path, count: int) -> list[tuple[int, bytes, bytes]]:
    """What an undisturbed loader without processes hands out. Nothing of it stays in the caches."""
    calm = new_loader(store, recipe)
    try:
        return content(list(itertools.islice(calm, count)))
    finally:
        calm.close()
        for file in cached_shards(caches):
            file.unlink()


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (signal.SIGKILL, "ended (signal 9)"),
        pytest.param(signal.SIGSTOP, "was stopped", marks=pytest.mark.long),
    ],
)
def test_a_lost_process_that_reads_a_bucket_is_replaced_and_nothing_else_changes(
    alone: Path, s3_workspace: str, sent: signal.Signals, told: str
) -> None:
    store = open_store(s3_workspace)
    make_dataset(store, "tiny", num_samples=40, size=16, max_samples=4)
    wanted = calm_batches(store, small_recipe(), alone, 12)
    said: list[str] = []
    loader = new_loader(store, small_recipe(workers=2, ahead=1), said.append)
    try:
        batches = [next(loader), next(loader)]
        lost = loader.worker_pids[1]
        os.kill(lost, sent)
        batches += [next(loader) for _ in range(10)]
        assert lost not in loader.worker_pids
    finally:
        loader.close()
    assert content(batches) == wanted
    assert any(told in line for line in said)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [2, pytest.param(120, marks=pytest.mark.long)])
def test_a_server_that_is_gone_for_a_while_is_waited_for(
    alone: Path, server: LocalS3, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    store = open_store(f"{new_bucket('stopped')}/prefix")
    make_dataset(store, "tiny", num_samples=40, size=16, max_samples=4)
    wanted = calm_batches(store, small_recipe(), alone, 10)
    loader = new_loader(store, small_recipe(workers=2, ahead=1, stall_seconds=3))
    ports = [*server._ports.values()]
    gone = threading.Event()

    def away() -> None:
        server.stop()
        gone.set()
        threading.Event().wait(seconds)  # this long it is away: the length is the fault
        server.start()

    monkeypatch.setattr(local_s3, "free_ports", lambda count: ports)
    absence = threading.Thread(target=away)
    try:
        batches = [next(loader)]
        pids = loader.worker_pids
        absence.start()
        assert gone.wait(60)
        batches += [next(loader) for _ in range(9)]
        assert loader.worker_pids == pids, "who waits for the store is not taken for stuck"
    finally:
        absence.join()
        loader.close()
    assert content(batches) == wanted


@pytest.mark.timeout(150)
@pytest.mark.parametrize("access", ["cached", "ranged"])
def test_a_store_that_stands_still_is_waited_for_and_told(
    alone: Path, access: str, s3_server: LocalS3, s3_workspace: str
) -> None:
    store = open_store(s3_workspace)
    make_dataset(store, "tiny", num_samples=40, size=16, max_samples=4)
    wanted = calm_batches(store, small_recipe(access), alone, 8)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting for s3://" in line:
            os.kill(s3_server.pid, signal.SIGCONT)

    loader = new_loader(store, small_recipe(access, workers=2, ahead=1, stall_seconds=3), say)
    os.kill(s3_server.pid, signal.SIGSTOP)
    try:
        pids: list[int] = []
        batches = []
        for batch in itertools.islice(loader, 8):
            pids = pids or loader.worker_pids
            batches.append(batch)
        assert loader.worker_pids == pids
    finally:
        os.kill(s3_server.pid, signal.SIGCONT)
        loader.close()
    assert content(batches) == wanted
    assert any("waiting for s3://" in line for line in said)
    assert not any("another takes its place" in line for line in said)
