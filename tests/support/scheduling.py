"""Schedulers under fire: how much is evaluated, what strikes at seeded moments, and what has to come out.

The oracle is every evaluation performed in turn by this process, without Ray, ledger or scheduler. Moments are counts
of recorded results, drawn by a seed, and a short delay after.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from jobs.base.ray_session import connected
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.evaluate.discovery import plan_all
from pipeline.evaluate.features import single_thread
from pipeline.evaluate.scheduler import Scheduler, ScheduleSummary
from pipeline.evaluate.worker import run_evaluation
from tests.support.command import start
from tests.support.evaluations import RUN, make_workspace, recorded_files, recorded_results, suite_recipe
from tests.support.faults import descendants

SECONDS = 240  # guards against hanging


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


Calm = Callable[[Size, Path], dict[str, object]]  # what an undisturbed run of a size finds


def calm_runs() -> Calm:
    """Finds what an undisturbed run of a size finds; of each size once."""
    known: dict[Size, dict[str, object]] = {}

    def find(size: Size, folder: Path) -> dict[str, object]:
        if size not in known:
            store = open_store(str(folder / "calm"))
            make_workspace(store, size.steps)
            single_thread()
            for item in plan_all(store, RUN, [suite_recipe(size.num_seeds)]):
                assert run_evaluation(store, item)
            known[size] = recorded_results(store)
            assert len(known[size]) == size.total
        return known[size]

    return find


def assert_each_once(store: Store, expected: dict[str, object]) -> None:
    """One result of each evaluation, with the content that it has to have."""
    keys = recorded_files(store)
    assert len(keys) == len({key.split("/")[1] for key in keys}) == len(expected)
    assert recorded_results(store) == expected


class RecordingProgress(Silent):
    """Remembers the messages, and calls *each* with the name of what was done."""

    def __init__(self, each: Callable[[str], None] = lambda name: None) -> None:
        self.lines: list[str] = []
        self._each = each

    def message(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, count: int = 1, note: str = "") -> None:
        self._each(note)

    def about(self, text: str) -> list[str]:
        """The messages that contain *text*."""
        return [line for line in self.lines if text in line]


def schedule(
    store: Store, size: Size, address: str, told: RecordingProgress | None = None, **changes: object
) -> ScheduleSummary:
    """A scheduler in this process."""
    with connected(address):
        return Scheduler(store, RUN, lambda: suite_recipe(size.num_seeds, **changes), told or RecordingProgress()).run()


@contextmanager
def command(workspace: str | Path, suite: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """A scheduler as a command; it is gone after the block."""
    options = ["--address", address] if address else []
    process = start("evaluate", RUN, "-w", workspace, "--suite", suite, *options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(store: Store, count: int, process: subprocess.Popen[str]) -> None:
    """Until *process* has recorded so many, or more."""
    deadline = time.monotonic() + SECONDS
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
