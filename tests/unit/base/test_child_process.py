"""Children: what is sent arrives whole, nobody is blocked, how it ended is known, and none outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from pipeline.base.child_process import ChildChannel, ChildProcess, cpu_time_of

PROGRAM = "tests.support.echo_child"
KINDS = ("pipes", "socket")
pytestmark = pytest.mark.timeout(90)
Start = Callable[..., ChildProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children of the echo program; they are closed when the test ends."""
    children: list[ChildProcess] = []

    def make(*arguments: str, program: str = PROGRAM, **settings: Any) -> ChildProcess:
        children.append(ChildProcess.start(program, arguments, **settings))
        return children[-1]

    yield make
    for child in children:
        child.close()


@pytest.fixture
def obeys_hangups() -> Iterator[None]:
    """What is started here ends at SIGHUP, also where the tests were started with nohup and ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def receive(child: ChildProcess, count: int) -> list[bytes]:
    """The next *count* bodies, or fewer when the child has ended."""
    bodies: list[bytes] = []
    while len(bodies) < count and not child.ended:
        bodies += [bytes(body) for body in child.receive(10.0, for_room=True) or ()]
    return bodies


def wait_for_end(child: ChildProcess) -> None:
    while not child.ended:
        child.receive(10.0)


@pytest.mark.parametrize("kind", KINDS)
def test_bodies_of_any_size_arrive_whole_and_in_order(start: Start, kind: str) -> None:
    child = start(channel=kind)
    bodies = [b"", b"x", bytes(range(256)) * 20_000, b"", b"y" * 300_001, *(b"%d" % number for number in range(200))]
    for body in bodies:
        child.send(body)
    assert receive(child, len(bodies)) == [b"echo " + body for body in bodies]
    assert child.num_unsent == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_the_length_in_eight_bytes_and_the_body(start: Start, kind: str) -> None:
    child = start("raw", "10", channel=kind)
    child.send(b"ab")
    child.send_raw(b"0123456789")
    assert receive(child, 2) == [struct.pack("<Q", 2) + b"ab", b"0123456789"]


@pytest.mark.parametrize("kind", KINDS)
def test_sending_never_blocks_and_what_is_unsent_is_counted(start: Start, kind: str) -> None:
    child = start(channel=kind)
    child.send(b"first")
    assert receive(child, 1) == [b"echo first"]
    os.kill(child.pid, signal.SIGSTOP)
    for _ in range(20):
        child.send(b"x" * 1_000_000)
    child.send_raw(b"")
    assert child.num_unsent == 21
    child.flush()
    while child.receive(0.1, for_room=True) is not None:
        pass
    assert 15 <= child.num_unsent <= 21
    os.kill(child.pid, signal.SIGCONT)
    assert [len(body) for body in receive(child, 20)] == [1_000_005] * 20
    assert child.num_unsent == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_within_the_timeout_is_none(start: Start, kind: str) -> None:
    child = start(channel=kind)
    child.send(b"sleep")
    child.flush()
    assert child.receive(0.2) is None
    assert not child.ended


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_fails_leaves_its_last_line(start: Start, kind: str) -> None:
    child = start(channel=kind)
    child.send(b"before")
    child.send(b"fail")
    assert receive(child, 2) == [b"echo before"]
    ended = child.close()
    assert (ended.code, ended.killed_from_outside, ended.last_line) == (3, False, "last line")
    assert child.close() is ended


@pytest.mark.parametrize(
    ("sent", "is_outside"),
    [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGHUP, True), (signal.SIGSEGV, False)],
)
def test_a_signal_from_outside_is_told_from_a_crash(
    start: Start, obeys_hangups: None, sent: signal.Signals, is_outside: bool
) -> None:
    child = start(channel="socket")
    child.send(b"x")
    receive(child, 1)
    os.kill(child.pid, sent)
    wait_for_end(child)
    ended = child.close()
    assert (ended.code, ended.killed_from_outside, ended.last_line) == (-sent, is_outside, f"exit code {-sent}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", [b"sleep", b"spin"])
def test_closing_ends_the_child_and_is_not_from_outside(start: Start, kind: str, word: bytes) -> None:
    child = start(channel=kind)
    child.send(word)
    child.flush()
    ended = child.close()
    assert (ended.code, ended.killed_from_outside) == (None, False)
    assert not psutil.pid_exists(child.pid)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_sent_before_its_end_can_be_read_after_it(start: Start, kind: str) -> None:
    child = start(channel=kind)
    child.send(b"a" * 200_000)
    child.send(b"fail")
    child.flush()
    while child.cpu_time()[0] != "Z":
        time.sleep(0.01)
        child.flush()
    child.end()
    assert [bytes(body) for body in child.last_frames()] == [b"echo " + b"a" * 200_000]


def test_sending_to_one_that_is_gone_ends_and_raises_nothing(start: Start) -> None:
    for kind in KINDS:
        child = start(channel=kind)
        child.send(b"fail")
        wait_for_end(child)
        child.send(b"x" * 3_000_000)
        child.flush()
        assert child.receive(0.0) == []
        assert child.close().code == 3


def test_prints_of_the_child_are_no_frames(start: Start) -> None:
    child = start()
    child.send(b"print")
    child.send(b"fail")
    assert receive(child, 3) == [b"nothing to read", b"echo print"]
    assert child.close().last_line == "last line"


@pytest.mark.parametrize("kind", KINDS)
def test_it_inherits_what_is_named_and_computes_with_one_thread(start: Start, kind: str) -> None:
    memory, other = os.memfd_create("named"), os.memfd_create("not-named", 0)
    os.set_inheritable(other, True)
    child = start("one", "two", channel=kind, inherit=[memory])
    child.send(b"describe")
    told = json.loads(receive(child, 1)[0])
    os.close(memory)
    os.close(other)
    assert told["arguments"] == ["one", "two"]
    assert any("memfd:named" in link for link in told["links"])
    assert not any("not-named" in link for link in told["links"])
    assert told["env"]["OMP_NUM_THREADS"] == "1"


def test_ctrl_c_does_not_reach_it(start: Start) -> None:
    child = start()
    child.send(b"x")
    receive(child, 1)
    assert os.getpgid(child.pid) != os.getpgid(0)
    os.kill(child.pid, signal.SIGINT)
    child.send(b"y")
    assert receive(child, 1) == [b"echo y"]


PARENT = f"""
import sys, time
from pipeline.base.child_process import ChildProcess
child = ChildProcess.start({PROGRAM!r}, channel=sys.argv[1])
child.send(b"x")
while not child.receive(10.0): pass
child.send(sys.argv[2].encode())
child.flush()
print(child.pid, flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["x", "sleep", "spin"])
def test_no_child_outlives_its_parent(kind: str, word: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, kind, word], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=30)


def test_one_that_cannot_start_is_an_error_of_the_system(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = start(program="tests.support.no_such_program")
    wait_for_end(missing)
    ended = missing.close()
    assert ended.code == 1
    assert "no_such_program" in ended.last_line
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    for kind in KINDS:
        with pytest.raises(OSError, match="No such file"):
            start(channel=kind)
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_of_the_child_send_whole_frames(start: Start) -> None:
    child = start(channel="socket")
    child.send(b"threads")
    assert receive(child, 81) == [b"x" * 50_000] * 80 + [b"echo threads"]


def test_its_time_is_that_of_its_cpu(start: Start) -> None:
    child = start()
    child.send(b"spin")
    child.flush()
    while child.cpu_time()[1] < 0.3:
        time.sleep(0.01)
    child.end()
    assert cpu_time_of(str(2**22 + 1)) == ("Z", 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_that_comes_in_pieces_is_put_together(start: Start, kind: str) -> None:
    child = start(channel=kind)
    child.send(b"pieces")
    assert receive(child, 2) == [b"sent slowly", b"echo pieces"]


def test_a_frame_that_goes_in_pieces_is_put_together() -> None:
    source, sink = os.pipe()
    channel = ChildChannel(source, sink)

    def write() -> None:
        for piece in (b"\x05\0\0", b"\0\0\0\0\0he", b"l", b"lo", b"\x09\0\0\0\0\0\0\0cut"):
            os.write(sink, piece)
            time.sleep(0.02)
        os.close(sink)

    thread = threading.Thread(target=write)
    thread.start()
    assert channel.receive() == b"hello"
    assert channel.receive() is None
    thread.join()
    os.close(source)
