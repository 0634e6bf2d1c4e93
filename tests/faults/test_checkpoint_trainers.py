"""Two trainings with one run id: the older one is refused at its commit. And retention while an evaluation reads."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.base.failpoints import VARIABLE
from pipeline.base.store import open_store
from pipeline.base.world import Collective, SingleProcess
from pipeline.checkpoints.resume import resume
from pipeline.checkpoints.retention import Retention, hold_steps, release_steps
from pipeline.records.run import list_steps, read_checkpoint_card
from tests.support.faults import wait_until
from tests.support.states import (
    KINDS,
    RUN,
    State,
    alone_writer,
    begin,
    new_saving,
    rank_writer,
    restored,
    run_ranks,
    same,
    save_steps,
    trained,
)


def train_to(collective: Collective, workspace: str, last: int) -> list[str]:
    """On a rank: resume, save each 10 steps to the *last*; what alarmed."""
    saving, state = begin(collective, workspace), State(collective.world)
    resume(saving, collective, state)
    writer = rank_writer(collective, saving)
    while state.updates < last:
        state.train(10)
        writer.save(state.updates, state.updates * 10, state)
    writer.wait()
    return writer.take_alarms()


@pytest.mark.parametrize("point", ["before-file", "before-card", "at-card"])
def test_the_older_one_is_refused_when_it_wakes(tmp_path: Path, point: str) -> None:
    """It sleeps at *point* of its save of step 20 while a newer attempt resumes step 10 and goes on to 30."""
    workspace, mark = tmp_path / "workspace", tmp_path / "mark"
    store = open_store(str(workspace))
    save_steps(new_saving(store), 10)
    sleeping = {0: {VARIABLE: f"stop@checkpoint.{point}:{mark}"}}
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(run_ranks, train_to, 2, str(workspace), 30, env=sleeping)
        try:
            pid = wait_until(lambda: mark.exists() and mark.read_text())
            newer, state = new_saving(store), State()
            assert resume(newer, SingleProcess(), state)
            writer = alone_writer(newer)
            for step in (20, 30):
                writer.save_and_wait(step, step * 10, state.train(step - state.updates))
        finally:
            os.kill(int(wait_until(lambda: mark.exists() and mark.read_text())), signal.SIGCONT)
        ended = older.result()
    assert pid
    for end in ended:
        assert "SupersededError: attempt 0002 of run r was superseded by attempt 0003" in end.error
    assert list_steps(store, RUN) == [10, 20, 30]
    for step in (20, 30):
        card = read_checkpoint_card(store, RUN, step)
        assert card.attempt == "0003"
        assert same(restored(store, card), trained(step, kinds=tuple(sorted(KINDS))))


def train_sparing(collective: Collective, workspace: str, gate: str) -> list[str]:
    """On a rank: save 10, 20, ... 60, keep one; after the first wait until *gate* is there."""
    saving, state = begin(collective, workspace), State(collective.world)
    writer = rank_writer(collective, saving, retention=Retention(keep_last=1))
    for _ in range(6):
        state.train(10)
        writer.save(state.updates, state.updates * 10, state)
        writer.wait()
        wait_until(lambda: Path(gate).exists())
    return writer.take_alarms()


def test_an_evaluation_keeps_what_it_reads(tmp_path: Path) -> None:
    workspace, gate = tmp_path / "workspace", tmp_path / "gate"
    store = open_store(str(workspace))
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(run_ranks, train_sparing, 2, str(workspace), str(gate))
        try:
            wait_until(lambda: list_steps(store, RUN))
            assert hold_steps(store, RUN, [10], "evaluation", 600) == [10]
        finally:
            gate.touch()
        ended = training.result()
    assert [(end.error, end.result) for end in ended] == [("", []), ("", [])]
    assert list_steps(store, RUN) == [10, 60]
    card = read_checkpoint_card(store, RUN, 10)
    assert same(restored(store, card), trained(10, kinds=tuple(sorted(KINDS))))
    release_steps(store, RUN, "evaluation")
    saving, state = new_saving(store), State()
    assert resume(saving, SingleProcess(), state)
    alone_writer(saving, retention=Retention(keep_last=1)).save_and_wait(70, 700, state.train(10))
    assert list_steps(store, RUN) == [70]
