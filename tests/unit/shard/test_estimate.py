"""``vitpipe shard --dry-run`` says what a sharding will cost, and leaves the workspace as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base.store import open_store
from tests.support.command import vitpipe
from tests.support.faults import content


def estimate_of(workspace: str | Path) -> dict[str, float]:
    """What the command tells of sharding an embedded corpus."""
    ended = vitpipe("shard", "embedded://digits/train", "-w", workspace, "--name", "d", "--dry-run", "--json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, float] = json.loads(ended.stdout)["estimates"]["d"]
    return found


@pytest.mark.parametrize("is_copied", [False, True])
def test_an_embedded_corpus_is_not_copied_into_the_workspace(tmp_path: Path, is_copied: bool) -> None:
    if is_copied:  # by a sharding before
        open_store(str(tmp_path)).put("corpora/digits/train.parquet", b"not looked at")
    before = content(tmp_path)
    found = estimate_of(tmp_path)
    assert (found["num_images"], found["num_read_requests"], found["num_write_requests"]) == (1197, 0, 0)
    assert content(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == ({"corpora"} if is_copied else set())


def test_requests_are_those_of_reading_it_from_the_workspace(s3_workspace: str) -> None:
    found = estimate_of(s3_workspace)
    assert found["num_read_requests"] == found["num_images"] == 1197
    assert list(open_store(s3_workspace).list()) == []
