"""Workers, decoders and a raylet killed in the middle of writing: the run ends with the bytes of a calm one."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.support.cluster import raylet_pid, raylets
from tests.support.faults import (
    SLOW,
    Sharding,
    assert_no_process_left,
    content,
    decoders,
    draw,
    killing,
    wait,
    wait_until,
    writers,
)


def run_and_kill(
    sharding: Sharding, workspace: Path, raylet: int, rng: random.Random, num_workers: int, num_decoders: int
) -> tuple[int, int]:
    """One run in which so many workers and decoders are killed, as far as it lasts; how many of each were."""
    process = sharding.start(workspace)
    with (
        killing(lambda: writers(raylet, workspace), rng, num_workers, 0.3) as workers_killed,
        killing(lambda: decoders(raylet), rng, num_decoders, 0.3) as decoders_killed,
    ):
        ended = wait(process, timeout=300)
    assert ended.code == 0, ended.told
    return len(workers_killed), len(decoders_killed)


def test_killed_workers_and_decoders(
    cluster: Cluster, slow_sharding: Sharding, slow_calm_content: dict[str, str], tmp_path: Path
) -> None:
    raylet = raylet_pid(cluster.head_node)
    killed = run_and_kill(slow_sharding, tmp_path, raylet, draw("kills"), 3, 3)
    assert killed == (3, 3)
    assert content(tmp_path) == slow_calm_content
    assert_no_process_left(slow_sharding.mark)


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("what", ["workers", "decoders"])
def test_killed_twenty_times(
    what: str, cluster: Cluster, slow_sharding: Sharding, slow_calm_content: dict[str, str], tmp_path: Path
) -> None:
    raylet, rng, killed = raylet_pid(cluster.head_node), draw(f"twenty {what}"), 0
    for number in range(20):
        wanted = (20 - killed, 0) if what == "workers" else (0, 20 - killed)
        killed += sum(run_and_kill(slow_sharding, tmp_path / str(number), raylet, rng, *wanted))
        assert content(tmp_path / str(number)) == slow_calm_content
        if killed == 20:
            break
    assert killed == 20


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_raylet_killed_and_a_node_that_comes_back(
    photographs: Path, slow_calm_content: dict[str, str], tmp_path: Path
) -> None:
    with raylets(3, 1) as cluster:
        sharding = Sharding(photographs, SLOW, cluster.address)
        process = sharding.start(tmp_path)
        nodes = list(cluster.worker_nodes)
        lost = draw("raylet").choice(nodes)
        wait_until(lambda: writers(raylet_pid(lost), tmp_path), process)
        os.kill(raylet_pid(lost), signal.SIGKILL)
        cluster.add_node(num_cpus=1)
        ended = wait(process, timeout=60)  # from the node's return, as its row of FAULTS.md wants
    assert ended.code == 0, ended.told
    assert content(tmp_path) == slow_calm_content
    assert_no_process_left(sharding.mark)
