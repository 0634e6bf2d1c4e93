"""A process is gone only when that is certain, and only the one that is meant is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.base.process_identity import ProcessIdentity

NO_PROCESS = 2**30  # above any kernel's limit of process numbers
LIMIT_SECONDS = 30.0


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits."""
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.communicate(timeout=LIMIT_SECONDS)


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait(LIMIT_SECONDS)


def test_this_process() -> None:
    current = ProcessIdentity.current()
    assert (current.host, current.pid) == (socket.gethostname(), os.getpid())
    assert current == ProcessIdentity.current() == ProcessIdentity.of_pid(os.getpid())
    assert current.is_alive()
    assert not current.is_gone()


def test_a_process_lives_until_it_is_gone(child: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of_pid(child.pid)
    assert identity.is_alive()
    assert not identity.is_gone()
    end(child)
    assert identity.is_gone()
    assert not identity.is_alive()


def test_one_whose_number_another_has_by_now_is_gone(child: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of_pid(child.pid)
    assert replace(identity, start_ticks="1").is_gone()
    assert not replace(identity, start_ticks="1").is_alive()


def test_without_a_start_time_its_number_alone_counts(child: subprocess.Popen[bytes]) -> None:
    stored = ProcessIdentity.from_place(ProcessIdentity.current().place_text, child.pid)
    assert stored.start_ticks == ""
    assert stored.is_alive()
    end(child)
    assert stored.is_gone()


def test_somebody_elses_process_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ProcessIdentity.of_pid(1).is_alive()

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert ProcessIdentity.of_pid(1).is_alive()
    assert not ProcessIdentity.of_pid(1).kill()


@pytest.mark.parametrize(
    "place", ["", "another-host", "{host}", "{host} 00000000 {space}", "{host} {boot} pid:[1]", "x {boot} {space}"]
)
def test_of_another_place_nothing_is_known(place: str) -> None:
    own = ProcessIdentity.current()
    text = place.format(host=own.host, boot=own.boot_id[:8], space=own.pid_namespace)
    for pid in (NO_PROCESS, os.getpid()):
        stored = ProcessIdentity.from_place(text, pid)
        assert not stored.is_gone()
        assert not stored.is_alive()


@pytest.mark.parametrize("pid", [NO_PROCESS, 2**70])
def test_a_number_that_no_process_has_is_gone(pid: int) -> None:
    assert ProcessIdentity.from_place(ProcessIdentity.current().place_text, pid).is_gone()


@pytest.mark.parametrize("pid", [0, -1, -NO_PROCESS])
def test_what_is_no_number_of_a_process_is_neither(pid: int) -> None:
    """For kill(2) they are groups."""
    identity = ProcessIdentity.from_place(ProcessIdentity.current().place_text, pid)
    assert not identity.is_gone()
    assert not identity.is_alive()


def test_the_place_is_stored_as_it_always_was() -> None:
    own = ProcessIdentity("host", "0123456789abcdef", "pid:[7]", 5)
    assert own.place_text == "host 01234567 pid:[7]"
    assert ProcessIdentity("host", "", "", 5).place_text == "host"
    for text in ("", "host", "host 01234567", "host 01234567 pid:[7]", "a b c d", "host  pid:[7]"):
        assert ProcessIdentity.from_place(text, 5).place_text == text


def test_a_message_is_the_same_process_again() -> None:
    own = ProcessIdentity.current()
    assert set(own.to_message()) == {"host", "machine", "pid", "born"}
    assert ProcessIdentity.from_message(own.to_message()) == own
    bare = ProcessIdentity("host", "", "", 5)
    assert bare.to_message() == {"host": "host", "machine": "host", "pid": 5, "born": ""}
    assert ProcessIdentity.from_message(bare.to_message()) == bare


def test_a_machine_is_a_kernel_and_a_namespace() -> None:
    own = ProcessIdentity("host", "boot", "pid:[7]", 5, "100")
    assert own.same_machine(replace(own, host="renamed", pid=6, start_ticks="200"))
    assert not own.same_machine(replace(own, boot_id="another"))
    assert not own.same_machine(replace(own, pid_namespace="pid:[8]"))
    assert ProcessIdentity("host", "", "", 5).same_machine(ProcessIdentity("host", "", "", 6))
    assert not ProcessIdentity("host", "", "", 5).same_machine(ProcessIdentity("other", "", "", 5))


@pytest.mark.parametrize("change", ["boot_id", "pid_namespace", "start_ticks", "pid"])
def test_only_the_process_that_is_meant_is_killed(child: subprocess.Popen[bytes], change: str) -> None:
    identity = ProcessIdentity.of_pid(child.pid)
    other: dict[str, object] = {change: NO_PROCESS if change == "pid" else "1"}
    assert not replace(identity, **other).kill()  # type: ignore[arg-type]
    assert child.poll() is None
    assert identity.kill()
    assert child.wait(LIMIT_SECONDS) == -signal.SIGKILL
    assert not identity.kill()


def test_nobody_kills_itself() -> None:
    assert not ProcessIdentity.current().kill()
