"""Schedulers, workers, a node and the store killed at seeded moments: one result each, equal to a calm run's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from infra.local import s3_server as local_s3
from infra.local.s3_server import LocalS3
from pipeline.base.store import open_store
from pipeline.base.store.s3 import S3Store
from pipeline.evaluate.discovery import plan_all
from pipeline.records.ledger import LEDGER, parse_listing
from tests.support.cluster import raylet_pid, raylets
from tests.support.evaluations import RUN, make_workspace, put_suite, recorded_results, remove_checkpoint, suite_recipe
from tests.support.faults import draw, wait
from tests.support.s3 import reach
from tests.support.scheduling import (
    SECONDS,
    SIZES,
    SMALL,
    WHOLE,
    Calm,
    RecordingProgress,
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


@pytest.mark.parametrize("size", SIZES)
def test_killed_schedulers(size: Size, cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    store, rng = open_store(str(tmp_path / "ws")), draw("schedulers")
    make_workspace(store, size.steps)
    suite = put_suite(tmp_path / "suite.json", size.num_seeds)
    for moment in size.moments(rng):
        with command(tmp_path / "ws", suite, cluster.address) as process:
            wait_for(store, moment, process)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
    left = size.total - num_recorded(store)
    with command(tmp_path / "ws", suite, cluster.address) as process:
        ended = wait(process, SECONDS)
    assert ended.code == 0, ended.told
    assert left, "it was killed too late to matter"
    assert_each_once(store, calm(size, tmp_path))


@pytest.mark.parametrize("size", SIZES)
def test_killed_workers(size: Size, cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    store, rng = open_store(str(tmp_path / "ws")), draw("workers")
    make_workspace(store, size.steps)
    raylet = raylet_pid(cluster.head_node)

    def strike() -> bool:
        found = workers(raylet)
        if found:
            os.kill(rng.choice(found), signal.SIGKILL)
        return bool(found)

    with at_moments(store, size.moments(rng), rng, strike) as struck:
        outcome = schedule(store, size, cluster.address)
    assert len(struck) == size.kills
    assert (outcome.num_recorded, outcome.failures) == (size.total, ())
    assert outcome.num_done >= size.total - size.kills, "one may be killed between recording and telling"
    assert_each_once(store, calm(size, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
def test_a_killed_node(size: Size, calm: Calm, tmp_path: Path) -> None:
    store, rng = open_store(str(tmp_path / "ws")), draw("node")
    make_workspace(store, size.steps)
    with raylets(2, 1) as cluster:
        (lost,) = cluster.worker_nodes

        def strike() -> bool:
            os.kill(raylet_pid(lost), signal.SIGKILL)
            return True

        with at_moments(store, size.moments(rng)[:1], rng, strike) as struck:
            outcome = schedule(store, size, cluster.address, cpus=1)
    assert len(struck) == 1
    assert (outcome.num_recorded, outcome.failures) == (size.total, ())
    assert_each_once(store, calm(size, tmp_path))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    """A server of its own, which can be stopped, with a bucket; the environment reaches it."""
    with LocalS3(tmp_path / "s3") as server:
        reach(server, monkeypatch, tmp_path)
        S3Store("evaluations", "").create_bucket()
        yield server


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "seconds"),
    [
        pytest.param(SMALL, 3.0, id="20"),
        pytest.param(WHOLE, 60.0, id="200", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_a_store_that_is_away(
    size: Size,
    seconds: float,
    server: LocalS3,
    calm: Calm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, rng = open_store("s3://evaluations/ws"), draw("store")
    make_workspace(store, size.steps)
    (moment, *_) = size.moments(rng)
    with command(store.uri, put_suite(tmp_path / "suite.json", size.num_seeds), "") as process:
        wait_for(store, moment, process)
        ports = list(server._ports.values())
        server.stop()
        time.sleep(seconds)
        monkeypatch.setattr(local_s3, "free_ports", lambda count: ports)
        server.start()
        ended = wait(process, SECONDS)
    assert ended.code == 0, ended.told
    assert_each_once(store, calm(size, tmp_path))


@pytest.mark.parametrize("size", SIZES)
def test_two_schedulers_at_once(size: Size, cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ws"))
    make_workspace(store, size.steps)
    suite = put_suite(tmp_path / "suite.json", size.num_seeds, max_parallel=1)
    with ExitStack() as stack:
        both = [stack.enter_context(command(tmp_path / "ws", suite, cluster.address)) for _ in range(2)]
        for process in both:
            ended = wait(process, SECONDS)
            assert ended.code == 0, ended.told
    assert_each_once(store, calm(size, tmp_path))
    marks = parse_listing(store.list(LEDGER))
    assert max(one.number("claim") for one in marks.values()) == 1, "none was claimed twice"


@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_that_vanishes(size: Size, cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    store, rng = open_store(str(tmp_path / "ws")), draw("vanishes")
    make_workspace(store, size.steps)
    gone = size.steps[0]  # the oldest: what is of it comes last
    moment = rng.randrange(1, size.total // 2)  # so that something of it is left
    told = RecordingProgress()

    def strike() -> bool:
        remove_checkpoint(store, gone)
        return True

    with at_moments(store, [moment], rng, strike) as struck:
        outcome = schedule(store, size, cluster.address, told)
    assert len(struck) == 1
    assert outcome.failures == ()
    assert told.about(f"step {gone} ") == [
        f"checkpoint of step {gone} is gone; what was not evaluated of it is left out"
    ]
    expected = calm(size, tmp_path)
    found = recorded_results(store)
    assert {key: expected[key] for key in found} == found, "what is recorded is what it has to be"
    others = {item.id for item in plan_all(store, RUN, [suite_recipe(size.num_seeds)])}
    assert len(others) == size.total - size.num_seeds - 1
    assert others <= set(found)
