"""Pulse and supervisor in one process and over a real socket: what they tell each other, and whom they listen to."""

from __future__ import annotations

import inspect
import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.world import World
from pipeline.train.distributed import AsyncAllReduce
from pipeline.train.heartbeat import _COLLECTIVES, SAVING, STEP, RankHeartbeat
from pipeline.train.preemption import RELOCATING, SIGTERM
from pipeline.train.watchdog import Watchdog

ROOT = Path(__file__).parents[3]
LIMIT_SECONDS = 30.0  # a guard against hanging


@pytest.fixture
def heard() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def told() -> threading.Event:
    """Something was heard."""
    return threading.Event()


@pytest.fixture
def supervisor(heard: list[tuple[str, str]], told: threading.Event) -> Iterator[Watchdog]:
    def message(group: str, text: str) -> None:
        heard.append((group, text))
        told.set()

    supervisor = Watchdog(on_message=message)
    yield supervisor
    supervisor.close()


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """What is opened from here on has numbers that do not fit into select's sets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < 1024:
        opened.append(os.dup(opened[0]))
    yield
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_rank_speaks_to_people_and_leaves_in_peace(
    supervisor: Watchdog, heard: list[tuple[str, str]], told: threading.Event
) -> None:
    pulse = RankHeartbeat(supervisor.address, World(1, 2), "0003")
    pulse.message("a store is slow")
    assert told.wait(LIMIT_SECONDS)
    pulse.close()
    assert heard == [("0003", "a store is slow")]
    assert supervisor.verdicts == []


def test_what_is_said_last_arrives(supervisor: Watchdog, heard: list[tuple[str, str]], told: threading.Event) -> None:
    pulse = RankHeartbeat(supervisor.address, World(), "0001")
    pulse.message("good-bye")
    pulse.close()
    assert told.wait(LIMIT_SECONDS)
    assert heard == [("0001", "good-bye")]


def test_a_wish_to_stop_reaches_ranks_that_are_there_and_those_that_come(supervisor: Watchdog) -> None:
    wishes: list[str] = []
    asked = [threading.Event(), threading.Event()]

    def pulse(rank: int) -> RankHeartbeat:
        def on_stop(reason: str) -> None:
            wishes.append(reason)
            asked[rank].set()

        return RankHeartbeat(supervisor.address, World(rank, 2), "0001", on_stop)

    first = pulse(0)
    supervisor.stop("SIGTERM")
    assert asked[0].wait(LIMIT_SECONDS)
    second = pulse(1)
    assert asked[1].wait(LIMIT_SECONDS)
    assert set(wishes) == {"SIGTERM"}
    for one in (first, second):
        one.close()


def test_a_rank_with_over_a_thousand_open_files_hears_too(supervisor: Watchdog, many_open_files: None) -> None:
    """A rank keeps a file open for each shard that it reads."""
    asked = threading.Event()
    pulse = RankHeartbeat(supervisor.address, World(), "0001", lambda _reason: asked.set())
    supervisor.stop("SIGTERM")
    assert asked.wait(LIMIT_SECONDS)
    pulse.close()


def test_a_wish_to_relocate_never_takes_the_place_of_an_interruption(supervisor: Watchdog) -> None:
    supervisor.stop(RELOCATING)
    supervisor.stop(SIGTERM)
    supervisor.stop(RELOCATING)
    assert supervisor.stopping == SIGTERM
    assert not supervisor.go_on()
    assert supervisor.stopping == SIGTERM


def test_after_a_relocation_it_goes_on(supervisor: Watchdog) -> None:
    supervisor.stop(RELOCATING)
    assert supervisor.go_on()
    assert supervisor.stopping == ""
    assert not supervisor.go_on()


def test_a_pulse_tells_whether_its_rank_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.heartbeat._LOOK_SECONDS", 0.0)
    locks, made = (threading.Lock(), threading.Lock()), queue.SimpleQueue[RankHeartbeat]()

    def first() -> None:
        locks[0].acquire()

    def second() -> None:
        locks[1].acquire()

    def rank() -> None:
        made.put(RankHeartbeat("", World(), "0001"))
        first()
        second()

    for lock in locks:
        lock.acquire()
    thread = threading.Thread(target=rank, daemon=True)
    thread.start()
    pulse = made.get(timeout=LIMIT_SECONDS)

    def until_at(name: str) -> bool:
        while not (state := pulse._state())["place"].endswith(f" {name}"):
            time.sleep(0.001)
        return bool(state["still"])

    until_at("first")
    pulse.mark(STEP, 3)
    assert [pulse._state()["still"] for _ in range(3)] == [True] * 3
    locks[0].release()
    assert not until_at("second")
    assert not pulse._state()["still"], "it has moved since that phase began"
    pulse.mark(STEP, 4)
    assert [pulse._state()["still"] for _ in range(3)] == [True] * 3
    locks[1].release()
    thread.join()


def test_a_phase_inside_a_phase_ends_where_it_began() -> None:
    pulse = RankHeartbeat("", World(), "0001")
    pulse.mark(STEP, 3)
    with suppress(ZeroDivisionError), pulse.during(SAVING):
        assert (pulse._state()["phase"], pulse._state()["step"]) == (SAVING, 3)
        raise ZeroDivisionError
    assert (pulse._state()["phase"], pulse._state()["step"]) == (STEP, 3)


def test_without_an_address_nothing_happens() -> None:
    pulse = RankHeartbeat("", World(), "0001")
    pulse.mark("step", 3)
    pulse.message("nobody listens")
    pulse.close()


def test_a_stranger_is_not_listened_to(supervisor: Watchdog, heard: list[tuple[str, str]]) -> None:
    host, _, port = supervisor.address.rpartition("/")[0].rpartition(":")
    hello = {"token": "guessed", "group": "0001", "rank": 0, "world": 1, **ProcessIdentity.current().to_message()}
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", json.dumps(hello).encode() + b'\n{"said": ["hi"]}\n'):
        with socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS) as line:
            line.sendall(sent)
            line.settimeout(LIMIT_SECONDS)
            assert line.recv(1) == b""
    assert heard == []
    assert supervisor.verdicts == []


CHILD = """
import sys, threading
from pipeline.base.world import World
from pipeline.train.heartbeat import RankHeartbeat
pulse = RankHeartbeat(sys.argv[1], World(int(sys.argv[2]), 2), "0001", on_end=lambda reason: print(reason, flush=True))
pulse.message("here")
threading.Event().wait()
"""


def test_a_rank_that_dies_ends_the_others_who_say_why(
    supervisor: Watchdog, heard: list[tuple[str, str]], told: threading.Event
) -> None:
    command = [sys.executable, "-c", CHILD, supervisor.address]
    children = []
    for rank in range(2):
        told.clear()
        children.append(subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True))
        assert told.wait(LIMIT_SECONDS)
    children[0].kill()
    out, _ = children[1].communicate(timeout=LIMIT_SECONDS)
    children[0].communicate(timeout=LIMIT_SECONDS)
    assert children[1].returncode == 75
    assert f"rank 0 (host {socket.gethostname()}, pid {children[0].pid}, step 0, starting): died" in out
    assert str(supervisor.verdicts[0]) == out.strip()
    assert heard[-1] == ("0001", f"{out.strip()}; all ranks are restarted")


def test_only_the_process_that_is_meant_is_killed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(100)"], stdout=-1)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        named = ProcessIdentity.of_pid(child.pid).to_message()
        assert not ProcessIdentity.from_message(named | {"machine": "another"}).kill()
        assert not ProcessIdentity.from_message(named | {"born": "1"}).kill()
        assert child.poll() is None
        assert ProcessIdentity.from_message(named).kill()
        assert child.wait(LIMIT_SECONDS) == -signal.SIGKILL
        assert not ProcessIdentity.current().kill()
    finally:
        child.kill()


def test_the_files_in_which_a_rank_waits_for_others_are_where_its_frames_say() -> None:
    waiting = inspect.getsourcefile(AsyncAllReduce) or ""
    assert any(part in waiting for part in _COLLECTIVES)
    house = [part for part in _COLLECTIVES if part.startswith("/pipeline/")]
    assert all((ROOT / part[1:]).is_file() for part in house)
