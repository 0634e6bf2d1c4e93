"""No room, no file handles: one line that says so, nothing visible half made, and with room the bytes of a calm run."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import FailedError
from pipeline.base.store import open_store
from pipeline.records.dataset import CARD
from pipeline.shard.recipe import ShardRecipe
from tests.support.datasets import random_corpus, shard_corpus
from tests.support.faults import NAME, Sharding, assert_no_process_left, content, one_line

MEGABYTES = 2  # the corpus has about 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of MEGABYTES."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_no_space_then_space(sharding: Sharding, calm_content: dict[str, str], small_disk: Path) -> None:
    ended = sharding.run(small_disk)
    assert ended.code == 1
    told = one_line(ended.told)
    assert "No space left on device" in told
    assert "make room, then give the same command again" in told
    left = content(small_disk)
    assert not [name for name in left if ".tmp-" in name]
    whole = {name: digest for name, digest in left.items() if "/shard-" in name}
    assert whole == {name: calm_content[name] for name in whole}
    assert f"datasets/{NAME}/{CARD}" not in left
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = sharding.run(small_disk)
    assert again.code == 0, again.told
    assert content(small_disk) == calm_content
    assert_no_process_left(sharding.mark)


def test_no_file_handles_then_some(tmp_path: Path) -> None:
    calm, workspace = tmp_path / "calm", tmp_path / "workspace"
    context = multiprocessing.get_context("forkserver")
    digest = _shard_in(context, calm, 0)[0]
    failures = []
    for spare in range(24):
        found, told = _shard_in(context, workspace, 1 + spare)
        if found:
            break
        failures.append(told)
        assert not list(workspace.rglob(CARD))
    assert found == digest
    assert content(workspace) == content(calm)
    assert len(failures) > 3
    for told in failures:
        assert "Too many open files" in told, failures
        assert "\n" not in told


def _shard_in(context: Any, workspace: Path, spare: int) -> tuple[str, str]:
    """Shard a corpus in a process with *spare* file handles, 0: as many as it likes; the digest, or what it said."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_shard, args=(workspace, spare, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join(timeout=30)
        process.kill()


def _shard(workspace: Path, spare: int, answers: Any) -> None:
    corpus = random_corpus(40, 2)
    if spare:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, used + spare))
    try:
        card = shard_corpus(open_store(str(workspace)), "few", corpus, ShardRecipe(max_samples=10))
        answers.send((card.digest, ""))
    except FailedError as error:
        answers.send(("", str(error)))
