"""Schedulers, workers, a node and the store killed at seeded moments: one result each, equal to a calm run's.

The oracle is every evaluation performed in turn by this process, without Ray, ledger or scheduler. Moments are counts
of recorded results, drawn by a seed, and a short delay after.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from infra.store import local_s3
from infra.store.local_s3 import LocalS3
from jobs.cluster import connected
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.base.store.s3 import S3Store
from pipeline.evaluate.features import single_thread
from pipeline.evaluate.perform import perform
from pipeline.evaluate.scheduler.by_name import plan_all
from pipeline.evaluate.scheduler.loop import Outcome, Scheduler
from pipeline.records.ledger import LEDGER, read_marks
from tests.support.cluster import raylet_pid, raylets
from tests.support.command import start
from tests.support.evaluations import (
    RUN,
    findings,
    make_workspace,
    put_suite,
    recorded_files,
    remove_checkpoint,
    suite_recipe,
)
from tests.support.faults import descendants, draw, wait
from tests.support.s3 import isolate_from_aws

Calm = Callable[["Size", Path], dict[str, object]]  # what an undisturbed run of a size finds
_SECONDS = 240  # guards against hanging
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Size:
    """How much is evaluated, and how often something is killed while it is."""

    num_checkpoints: int
    num_seeds: int
    kills: int

    @property
    def steps(self) -> list[int]:
        return [100 * (number + 1) for number in range(self.num_checkpoints)]

    @property
    def total(self) -> int:
        return self.num_checkpoints * (1 + self.num_seeds)

    def moments(self, rng: random.Random) -> list[int]:
        """After how many recorded results something is killed."""
        return sorted(rng.sample(range(1, self.total - 1), self.kills))


SMALL = Size(5, 3, 1)  # 20 evaluations
WHOLE = Size(20, 9, 8)  # 200
SIZES = [
    pytest.param(SMALL, id="20"),
    pytest.param(WHOLE, id="200", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
]


@pytest.fixture(scope="module")
def calm() -> Calm:
    """What an undisturbed run of a size finds."""
    known: dict[Size, dict[str, object]] = {}

    def find(size: Size, folder: Path) -> dict[str, object]:
        if size not in known:
            store = open_store(str(folder / "calm"))
            make_workspace(store, size.steps)
            single_thread()
            for item in plan_all(store, RUN, [suite_recipe(size.num_seeds)]):
                assert perform(store, item)
            known[size] = findings(store)
            assert len(known[size]) == size.total
        return known[size]

    return find


def assert_each_once(store: Store, expected: dict[str, object]) -> None:
    """One result of each evaluation, with the content that it has to have."""
    keys = recorded_files(store)
    assert len(keys) == len({key.split("/")[1] for key in keys}) == len(expected)
    assert findings(store) == expected


def schedule(store: Store, size: Size, address: str, **changes: object) -> Outcome:
    """A scheduler in this process."""
    with connected(address):
        return Scheduler(store, RUN, lambda: suite_recipe(size.num_seeds, **changes), Silent()).run()


@contextmanager
def command(workspace: str | Path, suite: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """A scheduler as a command; it is gone after the block."""
    where = ["--address", address] if address else []
    process = start("evaluate", RUN, "-w", workspace, "--suite", suite, *where)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(store: Store, count: int, process: subprocess.Popen[str]) -> None:
    """Until *process* has recorded so many, or more."""
    deadline = time.monotonic() + _SECONDS
    while num_recorded(store) < count:
        assert process.poll() is None, f"it ended before: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def num_recorded(store: Store) -> int:
    return len(recorded_files(store))


@contextmanager
def at_moments(store: Store, moments: list[int], rng: random.Random, strike: Callable[[], bool]) -> Iterator[list[int]]:
    """While the block runs, *strike* once so many results are recorded; gives the counts at which it did.

    One that returns False found nothing to strike, and is tried again.
    """
    ended, struck = threading.Event(), []

    def watch() -> None:
        for moment in moments:
            while num_recorded(store) < moment and not ended.is_set():
                ended.wait(0.005)
            ended.wait(rng.uniform(0, 0.05))
            while not ended.is_set() and not strike():
                ended.wait(0.005)
            if not ended.is_set():
                struck.append(num_recorded(store))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield struck
    finally:
        ended.set()
        thread.join()


def workers(pid: int) -> list[int]:
    """The pool's workers below the raylet *pid*."""
    found = []
    for process in descendants(pid):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Worker"):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


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
        ended = wait(process, _SECONDS)
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
    assert (outcome.num_done, outcome.failures) == (size.total, ())
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
    assert (outcome.num_done, outcome.failures) == (size.total, ())
    assert_each_once(store, calm(size, tmp_path))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    """A server of its own, which can be stopped, with a bucket; the environment reaches it."""
    isolate_from_aws(monkeypatch, tmp_path)
    with LocalS3(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
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
        ended = wait(process, _SECONDS)
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
            ended = wait(process, _SECONDS)
            assert ended.code == 0, ended.told
    assert_each_once(store, calm(size, tmp_path))
    marks = read_marks(store.list(LEDGER))
    assert max(one.number("claim") for one in marks.values()) == 1, "none was claimed twice"


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_that_vanishes(size: Size, cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    store, rng = open_store(str(tmp_path / "ws")), draw("vanishes")
    make_workspace(store, size.steps)
    gone = size.steps[0]  # the oldest: what is of it comes last

    def strike() -> bool:
        remove_checkpoint(store, gone)
        return True

    with at_moments(store, size.moments(rng)[:1], rng, strike) as struck:
        outcome = schedule(store, size, cluster.address)
    assert len(struck) == 1
    assert outcome.failures == ()
    expected = calm(size, tmp_path)
    found = findings(store)
    assert {key: expected[key] for key in found} == found, "what is recorded is what it has to be"
    others = {item.id for item in plan_all(store, RUN, [suite_recipe(size.num_seeds)])}
    assert len(others) == size.total - size.num_seeds - 1
    assert others <= set(found)
