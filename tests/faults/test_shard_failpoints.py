"""Killed at every step of writing and committing: the same command again gives the bytes of a calm run, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults import NAME, Sharding, assert_no_process_left, content, put

IN_DRIVER = (
    "shard.after-plan",
    "shard.after-shards",
    "shard.before-shards.parquet",
    "shard.before-rejects.parquet",
    "shard.before-duplicates.parquet",
    "shard.before-card",
    "shard.after-card",
    "shard.in-sweep",
)
IN_WORKER = (
    "shard.before-tar",
    pytest.param("shard.after-tar", marks=pytest.mark.long),
    pytest.param("shard.after-index", marks=pytest.mark.long),
)
KILLED = -9


def test_the_driver_dies_at_each_point_in_turn(
    sharding: Sharding, calm_content: dict[str, str], tmp_path: Path
) -> None:
    for point in IN_DRIVER[:-1]:
        assert sharding.failing(point).run(tmp_path).code == KILLED, point
    assert sharding.run(tmp_path).code == 0
    assert content(tmp_path) == calm_content
    assert_no_process_left(sharding.mark)


@pytest.mark.long
def test_the_driver_dies_while_it_sweeps(sharding: Sharding, calm_content: dict[str, str], tmp_path: Path) -> None:
    for name in ("shard-000999.tar", "shard-000999.parquet", ".tmp-of-a-killed-writer"):  # of an attempt long ago
        put(tmp_path, f"datasets/{NAME}/{name}", b"left")
    assert sharding.failing("shard.in-sweep").run(tmp_path).code == KILLED
    assert sharding.run(tmp_path).code == 0
    assert content(tmp_path) == calm_content


@pytest.mark.long
@pytest.mark.parametrize("point", IN_DRIVER)
def test_the_driver_dies_once(point: str, photographs: Path, calm_content: dict[str, str], tmp_path: Path) -> None:
    sharding = Sharding(photographs)  # with a cluster of its own, of which nothing may stay either
    assert sharding.failing(point).run(tmp_path).code == KILLED
    assert_no_process_left(sharding.mark)
    assert sharding.run(tmp_path).code == 0
    assert content(tmp_path) == calm_content
    assert_no_process_left(sharding.mark)


@pytest.mark.parametrize("point", IN_WORKER)
def test_a_worker_dies_and_the_run_goes_on(
    point: str, sharding: Sharding, calm_content: dict[str, str], tmp_path: Path
) -> None:
    once = tmp_path / "once"
    ended = sharding.failing(f"{point}:{once}", in_worker=True).run(tmp_path / "workspace")
    assert once.exists(), "nobody died"
    assert ended.code == 0, ended.told
    assert content(tmp_path / "workspace") == calm_content
    assert_no_process_left(sharding.mark)


@pytest.mark.long
def test_a_worker_dies_while_it_looks_for_duplicates(sharding: Sharding, tmp_path: Path) -> None:
    once, option = tmp_path / "once", "duplicates.within=file"
    assert sharding.run(tmp_path / "calm", option).code == 0
    ended = sharding.failing(f"scan.before-result:{once}", in_worker=True).run(tmp_path / "workspace", option)
    assert once.exists(), "nobody died"
    assert ended.code == 0, ended.told
    assert content(tmp_path / "workspace") == content(tmp_path / "calm")
    assert_no_process_left(sharding.mark)
