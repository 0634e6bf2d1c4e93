"""Several writers of one dataset: one wins, nobody is harmed, nothing is left; also when one sleeps through it all."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.store import open_store
from pipeline.records.dataset import CARD, DatasetCard
from tests.faults.publishers import Outcome, race
from tests.support.command import vitpipe
from tests.support.datasets import make_dataset
from tests.support.faults import Sharding, assert_no_process_left, content, one_line, wait, wait_until

PUBLISHERS = 16


def run_races(base: str, num_rounds: int) -> None:
    """Rounds of PUBLISHERS: in the even ones all cards are equal, in the odd ones there are two kinds."""
    card = make_dataset(open_store(f"{base}/made"), "one", num_samples=4)
    other = card.model_copy(update={"num_input": card.num_input + 1, "digest": "0" * 64})
    kinds = [[card] * PUBLISHERS if at % 2 == 0 else [card, other] * (PUBLISHERS // 2) for at in range(num_rounds)]
    targets = [f"{base}/round-{at:03d}" for at in range(num_rounds)]
    for target, cards, outcomes in zip(targets, kinds, race(targets, kinds), strict=True):
        check_round(target, cards, outcomes)


def check_round(target: str, cards: list[DatasetCard], outcomes: list[Outcome]) -> None:
    """Exactly one created the card; those that brought the same one have it, the others know in what theirs differ."""
    assert sum(outcome.created for outcome in outcomes) == 1
    winner = next(card for card, outcome in zip(cards, outcomes, strict=True) if outcome.created)
    store = open_store(target)
    assert [info.key for info in store.list()] == [CARD]
    assert store.read(CARD) == winner.to_json()
    for card, outcome in zip(cards, outcomes, strict=True):
        if card == winner:
            assert outcome.digest == winner.digest
            assert not outcome.conflict
        else:
            assert not outcome.digest
            assert f"num_input: {winner.num_input} -> {card.num_input}" in outcome.conflict


def test_sixteen_publishers_fifty_times(tmp_path: Path) -> None:
    run_races(tmp_path.as_uri(), 50)
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.long
def test_sixteen_publishers_on_s3(s3_workspace: str) -> None:
    run_races(s3_workspace, 2)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_sixteen_publishers_fifty_times_on_s3(s3_workspace: str) -> None:
    run_races(s3_workspace, 50)


def test_two_commands_at_once(sharding: Sharding, calm_content: dict[str, str], tmp_path: Path) -> None:
    """Each with its own copy of the source, whose files have other inodes and times."""
    copy, workspace = tmp_path / "copy", tmp_path / "workspace"
    shutil.copytree(sharding.corpus, copy, copy_function=shutil.copyfile)
    processes = [one.start(workspace) for one in (sharding, replace(sharding, corpus=copy))]
    for process in processes:
        ended = wait(process)
        assert ended.code == 0, ended.told
    assert content(workspace) == calm_content
    assert_no_process_left(sharding.mark)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_four_commands_at_once_on_s3(photographs: Path, calm_content: dict[str, str], s3_workspace: str) -> None:
    sharding = Sharding(photographs)  # each with a cluster of its own, which has the credentials
    for ended in [wait(process, 300) for process in [sharding.start(s3_workspace) for _ in range(4)]]:
        assert ended.code == 0, ended.told
    assert content(s3_workspace) == calm_content
    assert_no_process_left(sharding.mark)


@pytest.mark.parametrize("point", ["shard.before-tar", pytest.param("shard.after-tar", marks=pytest.mark.long)])
def test_a_writer_that_wakes_after_its_work_was_redone(
    point: str, sharding: Sharding, calm_content: dict[str, str], tmp_path: Path
) -> None:
    stopped, workspace = tmp_path / "stopped", tmp_path / "workspace"
    first = sharding.failing(f"stop@{point}:{stopped}", in_worker=True).start(workspace)
    pid = int(wait_until(lambda: stopped.exists() and stopped.read_text(), first))
    try:
        assert sharding.run(workspace).code == 0
        card = (workspace / "datasets/photographs" / CARD).stat()
    finally:
        os.kill(pid, signal.SIGCONT)
    ended = wait(first)
    assert ended.code == 0, ended.told
    assert (workspace / "datasets/photographs" / CARD).stat().st_ino == card.st_ino
    assert content(workspace) == calm_content
    assert_no_process_left(sharding.mark)


@pytest.mark.long
def test_two_commands_with_other_settings_do_not_mix(sharding: Sharding, tmp_path: Path) -> None:
    processes = [sharding.start(tmp_path, f"seed={seed}") for seed in (1, 2)]
    ended = [wait(process) for process in processes]
    assert min(one.code for one in ended) == 0, [one.told for one in ended]
    for one in ended:
        if one.code:
            assert "seed" in one_line(one.told)
    verified = vitpipe("verify", "--workspace", tmp_path)
    assert verified.returncode == 0, verified.stdout
