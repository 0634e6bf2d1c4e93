"""A store that is full, read-only, slow or away at a save: training goes on with an alarm, so many times."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.s3_server import LocalS3
from pipeline.base.errors import FailedError
from pipeline.base.store import BucketSettings, open_store
from pipeline.base.world import Collective
from pipeline.checkpoints import writer as writer_module
from pipeline.records.run import list_steps, read_checkpoint_card
from tests.support.proxy import Asked, FaultyProxy
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
    trained,
)

MEGABYTES = 8
BIG = {"w": (100, 1000), "b": (3,)}  # 0.4 MB, of each kind: about 2.4 MB a checkpoint, with the whole weights


def mounted(folder: Path, *options: str) -> None:
    """Mount, or mount again, a file system in memory."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root; the writer's own tests have a store that raises ENOSPC")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of MEGABYTES."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, f"size={MEGABYTES}m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def train_on(collective: Collective, workspace: str, room_at: int) -> tuple[list[str], list[int], str]:
    """On a rank: save at 10, 20, ... until it is refused; at *room_at* there is room. (alarms, saved, the end)."""
    saving, state = begin(collective, workspace), State(collective.world, model=BIG)
    writer = rank_writer(collective, saving)
    alarms, saved = [], []
    for step in range(10, 90, 10):
        if step == room_at and collective.world.is_first:
            subprocess.run(["mount", "-o", f"remount,rw,size={9 * MEGABYTES}m", workspace], check=True)
        collective.broadcast(None)
        try:
            writer.save(step, step * 10, state.train(10))
            saved += [step] if writer.wait() else []
        except FailedError as error:
            return alarms + writer.take_alarms(), saved, str(error)
        alarms += writer.take_alarms()
    return alarms, saved, ""


def test_no_space_then_space(small_disk: Path) -> None:
    ended = run_ranks(train_on, 2, str(small_disk), 60)
    assert [end.error for end in ended] == ["", ""]
    alarms, saved, ending = ended[0].result
    assert ended[1].result == (alarms, saved, ending)
    assert ending == ""
    assert saved == [10, 20, 30, 60, 70, 80]
    assert len(alarms) == 2
    assert all("was not saved, training goes on" in told and "No space left on device" in told for told in alarms)
    check(str(small_disk), saved)


def check(workspace: str, steps: list[int]) -> None:
    """These steps are there, whole, and nothing else: no temporary file, no file that no card names."""
    store = open_store(workspace)
    assert list_steps(store, RUN) == steps
    for step in steps:
        card = read_checkpoint_card(store, RUN, step)
        assert same(restored(store, card), trained(step, model=BIG, kinds=tuple(sorted(KINDS))))
    assert {info.key.split("/")[3] for info in store.list(f"runs/{RUN}/checkpoints/")} == {
        f"step-{step:08d}" for step in steps
    }
    assert not list(Path(workspace).rglob(".tmp-*"))


def test_no_space_for_good(small_disk: Path) -> None:
    ended = run_ranks(train_on, 2, str(small_disk), 0)
    alarms, saved, ending = ended[0].result
    assert ended[1].result == (alarms, saved, ending)
    assert saved == [10, 20, 30]
    assert len(alarms) == 3
    assert ending.startswith("3 checkpoints in a row were not saved; the last one: checkpoint of step 60")
    check(str(small_disk), saved)


def test_read_only_then_not(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "size=64m")
    try:
        state, writer = State(model=BIG), alone_writer(new_saving(open_store(str(folder))))
        writer.save(10, 100, state.train(10))
        assert writer.wait()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for step in (20, 30):
            writer.save(step, step * 10, state.train(10))
            assert not writer.wait()
        alarms = writer.take_alarms()
        assert len(alarms) == 2
        assert all("Read-only file system" in told for told in alarms)
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        writer.save_and_wait(40, 400, state.train(10))
        check(str(folder), [10, 40])
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def proxy(s3_server: LocalS3, s3_workspace: str) -> Iterator[FaultyProxy]:
    """In front of the server."""
    with FaultyProxy(s3_server.endpoint, 0) as proxy:
        yield proxy


def test_a_bucket_that_is_away_and_comes_back(proxy: FaultyProxy, s3_workspace: str) -> None:
    settings = {s3_workspace.split("/")[2]: BucketSettings(endpoint=proxy.endpoint)}
    store = open_store(s3_workspace, settings)
    state, writer = State(), alone_writer(new_saving(store))
    writer.save_and_wait(10, 100, state.train(10))

    def is_next_step(asked: Asked) -> bool:
        return asked.method == "PUT" and "step-00000020/" in asked.target

    proxy.inject("503", 1000, is_next_step)
    writer.save(20, 200, state.train(10))
    assert not writer.wait()
    (alarm,) = writer.take_alarms()
    assert "checkpoint of step 20 was not saved, training goes on" in alarm
    proxy.inject("lose", 1, lambda asked: asked.method == "PUT" and asked.target.endswith("checkpoint.json"))
    writer.save_and_wait(30, 300, state.train(10))
    assert writer.take_alarms() == [], "the card whose answer was lost is ours"
    assert list_steps(store, RUN) == [10, 30]
    assert same(restored(store, read_checkpoint_card(store, RUN, 30)), trained(30, kinds=tuple(sorted(KINDS))))


def test_a_slow_bucket_makes_training_wait_only_for_the_next_save(
    proxy: FaultyProxy, s3_workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_QUIET_SECONDS", 0.01)
    settings = {s3_workspace.split("/")[2]: BucketSettings(endpoint=proxy.endpoint)}
    store = open_store(s3_workspace, settings)
    state, writer = State(), alone_writer(new_saving(store))
    has_trained = threading.Event()

    def is_model(asked: Asked) -> bool:
        return asked.method == "PUT" and "step-00000010" in asked.target and "model" in asked.target

    proxy.inject("call", 1, is_model, lambda: has_trained.wait(60))
    writer.save(10, 100, state.train(10))
    state.train(50)
    assert list_steps(store, RUN) == []
    has_trained.set()
    writer.save(60, 600, state)
    assert writer.wait()
    assert proxy.pending == 0
    assert len(writer.take_alarms()) <= 2
    for step in (10, 60):
        card = read_checkpoint_card(store, RUN, step)
        assert same(restored(store, card), trained(step, kinds=tuple(sorted(KINDS))))
