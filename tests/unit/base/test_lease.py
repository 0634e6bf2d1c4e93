"""Leases: one of many racers takes, only what is abandoned is taken over, and numbers are fencing tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import pytest

from pipeline.base.lease import CLOCK_SKEW_SECONDS, Lease, list_numbers, release, renew, take, take_next, take_over
from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.store import Store, open_store

RACERS = 16
NOW = 1e9
KEY, PREFIX = "folder/lease.json", "folder/attempts/"
Value = TypeVar("Value")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return open_store(str(tmp_path))


def race(function: Callable[[int], Value]) -> list[Value]:
    """What *function* gave each of the racers, which start together."""
    start = Barrier(RACERS)

    def run(number: int) -> Value:
        start.wait()
        return function(number)

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


def ended_process() -> ProcessIdentity:
    """A process of this machine that is gone."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of_pid(child.pid)
    child.communicate(b"\n")
    return identity


def test_it_is_live_until_it_has_expired_by_every_clock() -> None:
    lease = Lease(expires=NOW)
    assert lease.deadline() == NOW + CLOCK_SKEW_SECONDS
    assert lease.is_live(NOW + CLOCK_SKEW_SECONDS - 1)
    assert not lease.is_live(NOW + CLOCK_SKEW_SECONDS)
    assert lease.is_live(NOW - 1, clock_skew=0.0)
    assert not lease.is_live(NOW, clock_skew=0.0)


def test_without_an_end_it_is_live_for_ever() -> None:
    assert Lease().is_live(1e30)
    assert not Lease().is_abandoned(1e30)


def test_it_is_abandoned_once_it_has_expired_or_its_process_is_gone() -> None:
    alive, gone = ProcessIdentity.current(), ended_process()
    elsewhere = ProcessIdentity.from_place("another-host", os.getpid())
    late = NOW + CLOCK_SKEW_SECONDS
    for holder in (None, alive, elsewhere):
        assert not Lease(holder, expires=NOW).is_abandoned(NOW)
        assert Lease(holder, expires=NOW).is_abandoned(late)
        assert not Lease(holder, expires=NOW).is_abandoned(late, clock_skew=2 * CLOCK_SKEW_SECONDS)
        assert not Lease(holder).is_abandoned(late)
    assert Lease(gone, expires=NOW + 1e6).is_abandoned(NOW)
    assert Lease(gone).is_abandoned(NOW)


def test_one_of_many_racers_takes_it(store: Store) -> None:
    taken = race(lambda number: take(store, KEY, f"racer {number}".encode()))
    assert sorted(taken) == [False] * (RACERS - 1) + [True]
    assert store.read(KEY) == f"racer {taken.index(True)}".encode()


def test_only_an_abandoned_one_is_taken_over(store: Store) -> None:
    assert take(store, KEY, b"first")
    alive, gone = Lease(ProcessIdentity.current()), Lease(ended_process())
    assert not take_over(store, KEY, b"second", alive, NOW)
    assert store.read(KEY) == b"first"
    assert take_over(store, KEY, b"second", gone, NOW)
    assert store.read(KEY) == b"second"


def test_numbers_are_taken_in_order(store: Store) -> None:
    assert list_numbers(store, PREFIX) == []
    assert [take_next(store, PREFIX, b"{}\n") for _ in range(12)] == [f"{number:04d}" for number in range(1, 13)]
    assert store.read(f"{PREFIX}0012.json") == b"{}\n"
    assert take_next(store, "elsewhere/", b"") == "0001"
    for number in range(1, 12):
        store.delete(f"{PREFIX}{number:04d}.json")
    assert take_next(store, PREFIX, b"") == "0013", "a gap is never filled: the newest number is the last one taken"
    assert list_numbers(store, PREFIX)[-1] == "0013"


def test_racers_get_distinct_numbers(store: Store) -> None:
    taken = race(lambda _: take_next(store, PREFIX, b""))
    assert sorted(taken) == list_numbers(store, PREFIX) == [f"{number:04d}" for number in range(1, RACERS + 1)]


def test_a_holders_own_key_is_renewed_and_released(store: Store) -> None:
    for body in (b"first", b"second"):
        renew(store, KEY, body)
        assert store.read(KEY) == body
    for _ in range(2):
        release(store, KEY)
        assert store.head(KEY) is None
    assert take(store, KEY, b"third")
