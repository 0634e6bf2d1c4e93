"""What crashes, hangs or fills the memory costs itself alone; what happens from outside costs nothing."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import psutil
import pytest

from pipeline.images import sandbox as module
from pipeline.images.check import CheckOptions, CheckResult, Reencode
from pipeline.images.decode import ImageRejectedError
from pipeline.images.sandbox import Limits, Sandbox
from tests.support.pictures import noise, png

QUICK = Limits(seconds=0.4, window_images=16)
REASONS = {"segv": "decoder-crashed", "sleep": "decoder-hung", "spin": "decoder-hung", "allocate": "decoder-memory"}


@pytest.fixture(autouse=True)
def _faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITPIPE_FAIL_AT", "decode")


def good(number: int) -> bytes:
    return png(noise(6, 6, number))


def bad(kind: str) -> bytes:
    return good(99) + b"vitpipe-fault:" + kind.encode()


def reasons(sandbox: Sandbox, images: list[bytes]) -> list[str]:
    """Of each image, "" for one that is kept."""
    found = []
    for number, (tag, data, result) in enumerate(sandbox.check(enumerate(images))):
        assert (tag, data) == (number, images[number])
        found.append(result.reason if isinstance(result, ImageRejectedError) else "")
    return found


@pytest.mark.parametrize("kind", REASONS)
def test_a_fault_costs_that_image_alone(kind: str) -> None:
    images = [good(number) for number in range(10)] + [bad(kind)] + [good(number) for number in range(10, 20)]
    with Sandbox(CheckOptions(), QUICK) as sandbox:
        assert reasons(sandbox, images) == [""] * 10 + [REASONS[kind]] + [""] * 10


def test_faults_first_last_and_in_a_row_with_large_results() -> None:
    order = ["segv", "", "allocate", "segv", "", "spin", "", "segv", "sleep", "", "segv"]
    images = [bad(kind) if kind else good(number) for number, kind in enumerate(order)]
    options = CheckOptions(reencode=Reencode(mode="short", size=500, enlarge=True, format="png"))
    with Sandbox(options, QUICK) as sandbox:
        found = []
        for _, _, result in sandbox.check(enumerate(images)):
            found.append(result.reason if isinstance(result, ImageRejectedError) else "")
            assert isinstance(result, ImageRejectedError) or (result.data and len(result.data) > 100_000)
    assert found == [REASONS.get(kind, "") for kind in order]


def test_it_is_tried_twice_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0
    real = module.ChildProcess.start

    def counting(*arguments: object) -> object:
        nonlocal started
        started += 1
        return real(*arguments)

    monkeypatch.setattr(module.ChildProcess, "start", counting)
    with Sandbox(CheckOptions(), QUICK) as sandbox:
        assert reasons(sandbox, [good(1), bad("segv"), good(2)]) == ["", "decoder-crashed", ""]
    assert started == 3


def test_a_fault_that_happens_once_costs_nothing() -> None:
    """The child of the first try dies of a signal that decoders die of; the second one has no fault."""
    with Sandbox(CheckOptions(), QUICK) as sandbox:
        series = sandbox.check((number, good(number)) for number in range(60))
        found = []
        for number, _, result in series:
            found.append(isinstance(result, CheckResult))
            if number in (10, 30) and sandbox.pid:
                os.kill(sandbox.pid, signal.SIGSEGV)
        assert found == [True] * 60


def test_a_child_that_dies_between_two_images_costs_neither() -> None:
    with Sandbox(CheckOptions(), Limits(tries=1)) as sandbox:
        assert reasons(sandbox, [good(1)]) == [""]
        idle = psutil.Process(sandbox.pid)
        idle.send_signal(signal.SIGSEGV)
        while idle.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
        assert reasons(sandbox, [good(2), good(3)]) == ["", ""]


def test_without_the_variable_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITPIPE_FAIL_AT")
    with Sandbox(CheckOptions(), QUICK) as sandbox:
        assert reasons(sandbox, [bad(kind) for kind in REASONS]) == [""] * 4


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_killed_from_outside_changes_no_result(how: signal.Signals) -> None:
    draw, killed = random.Random(5), 0
    images = [png(noise(60, 60, number))[: None if number % 7 else -40] for number in range(80)]
    with Sandbox(CheckOptions(), Limits(window_images=8)) as sandbox:
        calm = reasons(sandbox, images)
        found = []
        for _, _, result in sandbox.check(enumerate(images)):
            found.append(result.reason if isinstance(result, ImageRejectedError) else "")
            if draw.random() < 0.1 and sandbox.pid:
                os.kill(sandbox.pid, how)
                killed += 1
    assert found == calm
    assert killed >= 5
    assert set(found) == {"", "truncated"}


def test_a_stopped_child_is_replaced_and_its_image_kept() -> None:
    with Sandbox(CheckOptions(), QUICK) as sandbox:
        assert reasons(sandbox, [good(1)]) == [""]
        assert sandbox.pid
        stopped = psutil.Process(sandbox.pid)
        stopped.suspend()
        assert reasons(sandbox, [good(2), good(3)]) == ["", ""]
        assert sandbox.pid != stopped.pid
        assert not stopped.is_running()


def test_an_image_whose_child_is_killed_each_time_is_rejected_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel does when the machine, not the limit, runs out of memory: it sends SIGKILL."""
    real = Sandbox._tick

    def killing(self: Sandbox, child: module.ChildProcess, job: module._Job[object]) -> str:
        if job.data.endswith(b"sleep"):
            os.kill(child.pid, signal.SIGKILL)
        return real(self, child, job)

    monkeypatch.setattr(Sandbox, "_tick", killing)
    with Sandbox(CheckOptions()) as sandbox:
        assert reasons(sandbox, [good(1), bad("sleep"), good(2)]) == ["", "decoder-memory", ""]


def ticks(
    clock: Iterator[tuple[str, float]], limits: Limits, num_pixels: int = 0, most: int = 5_000
) -> tuple[int, str]:
    """How many ticks of *clock* (state, CPU seconds) it takes to condemn the child, and as what."""

    class Told:
        def cpu_time(self) -> tuple[str, float]:
            return next(clock)

    sandbox, job = Sandbox(CheckOptions(), limits), module._Job(0, b"x", num_pixels=num_pixels)
    for number in range(most):
        if verdict := sandbox._tick(Told(), job):  # type: ignore[arg-type]
            return number, verdict
    return most, ""


def test_the_clock() -> None:
    limits = Limits(seconds=2.0)
    asleep = ticks(iter([("S", 1.0)] * 5_000), limits)
    assert asleep[1] == "decoder-hung"
    assert 39 <= asleep[0] <= 42
    busy = ticks(((("R", 0.05 * number)) for number in range(5_000)), limits)
    assert busy[1] == "decoder-hung"
    assert 39 <= busy[0] <= 42
    large = ticks(((("R", 0.05 * number)) for number in range(5_000)), limits, num_pixels=64_000_000)
    assert large[1] == "decoder-hung"
    assert large[0] > 600


def test_the_clock_of_a_child_that_is_not_let_run() -> None:
    """Ready to run, or waiting for the disk, but the machine has no time for it: never its own fault."""
    for state in "RD":
        starved = ticks(iter([(state, 1.0)] * 5_000), Limits(seconds=2.0))
        assert starved[1] == "outside"
        assert starved[0] >= 1_000
    slow = ticks(((("R", 0.001 * number)) for number in range(5_000)), Limits(seconds=2.0), most=1_000)
    assert slow == (1_000, "")
