"""How often ranks are started again, and what a SIGTERM to the driver means; Ray's part of it is played."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.base.errors import DivergedError, FailedError, InterruptedRunError
from pipeline.train import ray_executor as launching
from pipeline.train.preemption import RELOCATING, SIGTERM
from pipeline.train.ray_executor import ElasticSizes, _fitting, _sigterm, _until_done
from pipeline.train.watchdog import Watchdog

FIXED, ELASTIC = ElasticSizes([2], {"CPU": 1.0}, 3, 30.0), ElasticSizes([4, 2], {"CPU": 1.0}, 3, 30.0)


class RanksDied(Exception):
    """As Ray's WorkerGroupError."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__("2 workers failed")
        self.worker_failures = failures


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def supervisor(heard: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Watchdog]:
    monkeypatch.setattr(launching, "_draining", dict)
    supervisor = Watchdog(on_message=lambda attempt, text: heard.append(f"{attempt}|{text}"))
    yield supervisor
    supervisor.close()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens at each start of the ranks, in turn; nothing: they return."""
    planned: list[Callable[[], None]] = []
    monkeypatch.setattr(launching, "_fit", lambda *_: planned.pop(0)() if planned else None)
    return planned


def die() -> None:
    raise RanksDied(a=RuntimeError("gloo: connection closed by peer"))


def run(supervisor: Watchdog, saved: list[int] | None = None) -> None:
    """*saved*: the newest step, each time that somebody looks."""
    steps = iter(saved or [0] * 100)
    _until_done(lambda _: None, {}, FIXED, supervisor, lambda: next(steps))


def test_ranks_may_die_so_often_without_getting_further(supervisor: Watchdog, attempts: Any) -> None:
    attempts += [die, die, die]
    run(supervisor)
    attempts += [die, die, die, die, die]
    with pytest.raises(FailedError, match="training failed: RuntimeError: gloo: connection closed by peer"):
        run(supervisor)
    assert len(attempts) == 1


def test_deaths_are_counted_anew_from_a_newer_checkpoint(supervisor: Watchdog, attempts: Any) -> None:
    attempts += [die] * 10
    run(supervisor, saved=[0, 0, 0, 0, 10, 10, 10, 20, 20, 20, 30])
    assert attempts == []
    attempts += [die] * 10
    with pytest.raises(FailedError):
        run(supervisor, saved=[0, 0, 0, 10, 10, 10, 10, 99])
    assert len(attempts) == 4


@pytest.mark.parametrize("at", [0, 1])
def test_who_gives_up_for_a_reason_is_not_started_again(supervisor: Watchdog, attempts: Any, at: int) -> None:
    def give_up() -> None:
        raise RanksDied(**{str(at): DivergedError("step 6: loss nan"), str(1 - at): RuntimeError("gloo")})

    attempts += [give_up, die]
    with pytest.raises(DivergedError, match="step 6: loss nan"):
        run(supervisor)
    assert attempts == [die]


def test_after_a_relocation_the_ranks_begin_anew(supervisor: Watchdog, attempts: Any) -> None:
    begun: list[str] = []
    attempts += [lambda: supervisor.stop(RELOCATING), lambda: begun.append(supervisor.stopping)]
    run(supervisor)
    assert begun == [""]


def test_a_sigterm_during_a_relocation_ends_the_ranks_and_is_remembered(supervisor: Watchdog, attempts: Any) -> None:
    """They had agreed to relocate, so they return as if all were done."""

    def relocate() -> None:
        supervisor.stop(RELOCATING)
        supervisor.stop(SIGTERM)

    attempts += [relocate, die]
    run(supervisor)
    assert attempts == [die]
    assert supervisor.stopping == SIGTERM


def test_two_sigterms_at_once_are_one_and_a_later_one_is_impatience(
    supervisor: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_for_one = []

    def hear_four() -> None:
        with _sigterm(supervisor, 30.0):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                taken_for_one.append(1)
            monkeypatch.setattr(launching, "_ECHO_SECONDS", 0.0)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        hear_four()
    assert len(taken_for_one) == 3


def test_waiting_for_room_is_told_once(supervisor: Watchdog, heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = iter([1] * 5 + [4] * 5)
    monkeypatch.setattr(launching, "_room", lambda _: next(rooms))
    monkeypatch.setattr(launching, "_QUIET_SECONDS", -1.0)
    monkeypatch.setattr(launching, "_SETTLE_SECONDS", 0.01)
    assert _fitting(ELASTIC, supervisor) == 4
    assert heard == ["|waits for room: 1 ranks of {'CPU': 1.0} fit on what is free, 2 are needed"]
