"""Signs of life in shared memory: readable whatever happens to the writer; a stall is told from a lack of CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.base import shared_memory
from pipeline.base.shared_memory import HeartbeatThread, SharedMemory, StallDetector, StatusPage


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory("test", 8192)
    yield memory
    memory.close()


CHILD = """
import os, sys
from pipeline.base.shared_memory import SharedMemory, StatusPage
memory = SharedMemory.attach(int(sys.argv[1]))
page = StatusPage(memory)
page.begin("reading sample 7")
page.beat(True)
memory[4096:4101] = b"hello"
os._exit(9)
"""


def test_what_a_child_was_doing_can_be_read_after_its_end(memory: SharedMemory) -> None:
    page = StatusPage(memory.buffer)
    assert page.activity == "starting"
    command = [sys.executable, "-c", CHILD, str(memory.descriptor)]
    assert subprocess.run(command, check=False, pass_fds=[memory.descriptor]).returncode == 9
    memory.close_descriptor()
    assert (page.activity, page.is_busy, page.is_stuck, page.is_waiting) == ("reading sample 7", True, True, False)
    assert (page.steps, page.beats) == (1, 1)
    assert memory.buffer[4096:4101] == b"hello"
    page.release()


def test_steps_and_states_of_a_page(memory: SharedMemory) -> None:
    page = StatusPage(memory.buffer)
    page.begin("a longer text")
    page.begin("b")
    assert (page.activity, page.steps, page.is_busy) == ("b", 2, True)
    page.wait("waiting for s3://bucket/key for 5 s")
    assert (page.is_waiting, page.is_busy, page.steps) == (True, True, 3)
    page.begin("c")
    assert not page.is_waiting
    page.wait("d")
    page.rest()
    assert (page.is_waiting, page.is_busy, page.steps) == (False, False, 6)
    page.begin("é" * 2_000)
    assert set(page.activity) <= {"é", "\N{REPLACEMENT CHARACTER}"}
    assert memory.buffer[1024:] == bytes(7168), "a page takes no more than its 1,024 bytes"
    page.release()
    assert page.activity == "starting"


def test_memory_that_is_still_read_stays(memory: SharedMemory) -> None:
    array = np.frombuffer(memory.buffer, np.uint8)
    descriptor = memory.descriptor
    memory.close()
    memory.close()
    assert array.sum() == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def stall_of(monkeypatch: pytest.MonkeyPatch, ticks: list[tuple[str, float, int]]) -> tuple[float, float]:
    """(seconds, stopped_seconds) after *ticks* of 0.5 s: state, CPU seconds, mark."""
    times = iter(ticks)
    mark = 0

    def cpu_time_of(task: str) -> tuple[str, float]:
        assert task == "1/task/2"
        return state, cpu_seconds

    monkeypatch.setattr(shared_memory, "cpu_time_of", cpu_time_of)
    detector = StallDetector("1/task/2", 0.5)
    for state, cpu_seconds, mark in times:  # noqa: B007 - read by cpu_time_of
        detector.tick(mark)
    return detector.seconds, detector.stopped_seconds


def test_a_stall_is_counted_in_ticks_without_life(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stall_of(monkeypatch, [("S", 1.0, 1)] * 5) == (2.0, 0.0)
    assert stall_of(monkeypatch, [("S", 1.0, 1)] * 5 + [("S", 1.0, 2)]) == (0.0, 0.0)
    assert stall_of(monkeypatch, [("D", 1.0, 1)] * 3) == (1.0, 0.0), "it waits for a disk"


def test_who_is_ready_but_gets_no_cpu_does_not_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stall_of(monkeypatch, [("R", 1.0, 1)] * 9) == (0.0, 0.0)
    spinning = [("R", 0.5 * number, 1) for number in range(1, 6)]
    assert stall_of(monkeypatch, spinning) == (2.0, 0.0)


def test_who_is_stopped_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stall_of(monkeypatch, [("S", 1.0, 1)] + [("T", 1.0, 1)] * 3) == (1.5, 1.5)
    assert stall_of(monkeypatch, [("T", 1.0, 1)] * 3 + [("S", 1.0, 1)])[1] == 0.0


def test_a_thread_that_does_not_go_on_is_reported_and_one_without_work_is_not(memory: SharedMemory) -> None:
    page = StatusPage(memory.buffer)
    end = threading.Event()
    worker = threading.Thread(target=end.wait)
    worker.start()
    beats = HeartbeatThread(page, f"self/task/{worker.native_id}", stuck_seconds=0.2, beat_seconds=0.02)
    beats.start()
    try:
        page.begin("a")
        wait_until(lambda: page.is_stuck)
        page.begin("b")
        wait_until(lambda: not page.is_stuck)
        wait_until(lambda: page.is_stuck)
        page.rest()
        wait_until(lambda: not page.is_stuck)
        before = page.beats
        wait_until(lambda: page.beats > before + 20)
        assert not page.is_stuck
    finally:
        beats.end()
        end.set()
        worker.join()
    assert not beats.is_alive()
    page.release()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
