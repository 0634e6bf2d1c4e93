"""The head of the cluster is killed while evaluations run: it is told, and the same command goes on elsewhere."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from pipeline.base.errors import InterruptedRunError
from pipeline.base.store import open_store
from pipeline.evaluate import ray_executor as spread
from pipeline.evaluate import scheduler as loop
from tests.support.cluster import raylet_pid, raylets
from tests.support.evaluations import make_workspace, put_suite, suite_tree
from tests.support.faults import draw, wait
from tests.support.scheduling import (
    SECONDS,
    SIZES,
    SMALL,
    Calm,
    Size,
    assert_each_once,
    at_moments,
    command,
    num_recorded,
    schedule,
    wait_for,
    workers,
)

pytestmark = pytest.mark.timeout(300)


@contextmanager
def killed_head(cluster: Cluster) -> Iterator[Callable[[], bool]]:
    """Gives what kills the cluster's head: the store of its state and the raylet. Its workers are ended after."""
    head, left = cluster.head_node, list[psutil.Process]()

    def strike() -> bool:
        left.extend(psutil.Process(pid) for pid in workers(raylet_pid(head)))
        os.kill(int(head.all_processes["gcs_server"][0].process.pid), signal.SIGKILL)
        os.kill(raylet_pid(head), signal.SIGKILL)
        return True

    try:
        yield strike
    finally:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def with_endless(size: Size) -> dict[str, Any]:
    """What of a suite is to change so that most is left when its head is missed, on however quick a machine: after one
    evaluation of each checkpoint, both workers are at one that does not end."""
    settings = {"steps": 100_000, "batch_size": 16, "learning_rates": [0.01]}
    endless = {"evaluator": "finetune", "tasks": ["task"], "checkpoints": "last", "seeds": [0, 1], "settings": settings}
    order = ["knn on *", "finetune on *", "fewshot on *"]
    return {"suite": [*suite_tree(size.num_seeds)["suite"], endless], "priority": order}


def moment(size: Size, rng: random.Random) -> int:
    """After how many recorded results the head is killed: before or while those are evaluated that do not end."""
    return rng.randint(1, size.num_checkpoints)


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
def test_a_killed_head(size: Size, calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_HEAD_SECONDS", 0.1)
    monkeypatch.setattr(spread, "_HEAD_SECONDS", 0.5)
    store, rng = open_store(str(tmp_path / "ws")), draw("head")
    make_workspace(store, size.steps)
    with raylets(1, 2) as cluster, killed_head(cluster) as strike:
        moments = [moment(size, rng)]
        with at_moments(store, moments, rng, strike) as struck, pytest.raises(InterruptedRunError) as told:
            schedule(store, size, cluster.address, **with_endless(size))
        assert "the head of the Ray cluster at " in str(told.value)
        assert "on a cluster that is up the same command goes on" in str(told.value)
        left = size.total - num_recorded(store)
        with raylets(1, 2) as another:  # while workers of the first one may still be at it
            outcome = schedule(store, size, another.address)
    assert len(struck) == 1
    assert left, "it was killed too late to matter"
    assert (outcome.num_recorded, outcome.failures) == (size.total, ())
    assert_each_once(store, calm(size, tmp_path))


@pytest.mark.long
def test_a_command_whose_head_is_killed_ends_and_can_be_given_again(calm: Calm, tmp_path: Path) -> None:
    store, rng = open_store(str(tmp_path / "ws")), draw("head")
    make_workspace(store, SMALL.steps)
    suite = put_suite(tmp_path / "suite.json", SMALL.num_seeds, **with_endless(SMALL))
    with (
        raylets(1, 2) as cluster,
        killed_head(cluster) as strike,
        command(tmp_path / "ws", suite, cluster.address) as process,
    ):
        wait_for(store, moment(SMALL, rng), process)
        strike()
        ended = wait(process, SECONDS)
    assert ended.code == 3, ended.told
    assert "does not answer; it is waited for 30 s" in ended.told
    assert "vitpipe: the head of the Ray cluster at " in ended.told
    put_suite(suite, SMALL.num_seeds)
    with raylets(1, 2) as another, command(tmp_path / "ws", suite, another.address) as process:
        ended = wait(process, SECONDS)
    assert ended.code == 0, ended.told
    assert_each_once(store, calm(SMALL, tmp_path))
