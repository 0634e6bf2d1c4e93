"""Loader processes on the real S3 server: a store that is away is waited for, and nobody is taken for dead."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest

from infra.store.local_s3 import LocalS3
from pipeline.base.store import open_store
from pipeline.base.world import World
from pipeline.stream.batch import open_readers
from pipeline.stream.loader import Batch, StreamLoader
from pipeline.stream.recipe import AugmentRecipe, StreamRecipe
from tests.support.datasets import make_dataset
from tests.support.far import cached_shards


def content(batches: list[Batch]) -> list[tuple[int, bytes, bytes]]:
    return [(batch.step, batch.images.numpy().tobytes(), batch.origins.tobytes()) for batch in batches]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("access", ["cached", "ranged"])
def test_a_store_that_stands_still_is_waited_for_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str, s3_server: LocalS3, s3_workspace: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = open_store(s3_workspace)
    make_dataset(store, "tiny", num_samples=40, size=16, max_samples=4)
    recipe = StreamRecipe(
        batch_size=8, partitions=4, window=4, augment=AugmentRecipe(size=16), access=access, stall_seconds=3
    )
    calm = StreamLoader(open_readers(store, ["tiny"], recipe, World()), recipe, seed=0, world=World())
    wanted = content(list(itertools.islice(calm, 8)))
    calm.close()
    for file in cached_shards(tmp_path):
        file.unlink()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting for s3://" in line:
            os.kill(s3_server.pid, signal.SIGCONT)

    recipe = recipe.model_copy(update={"workers": 2, "ahead": 1})
    loader = StreamLoader(open_readers(store, ["tiny"], recipe, World()), recipe, seed=0, world=World(), say=say)
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
