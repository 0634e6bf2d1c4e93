"""A real Ray cluster of several raylets on this machine, ended by its own handle."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_job_agent(address: str) -> None:
    """Until the cluster takes jobs: it answers 500 while the agent of its head starts. Ray offers no event for it."""
    client = JobSubmissionClient(address)
    deadline = time.monotonic() + 240
    while True:
        try:
            client.submit_job(entrypoint="true")
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextmanager
def ray_cluster(num_raylets: int) -> Iterator[tuple[Cluster, str]]:
    """A cluster of one-CPU nodes with a dashboard; (cluster, address of the dashboard)."""
    port = free_port()
    # By default the head's agent listens at 52365 and takes no jobs when another has that port: agents outlive a driver
    # that was killed by up to two minutes, and other tests kill theirs.
    ports = {"dashboard_port": port, "dashboard_agent_listen_port": free_port()}
    head: dict[str, Any] = {"num_cpus": 1, "include_dashboard": True, **ports}
    # Jobs start `python`: it has to be this environment's, which has vitpipe installed.
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(num_raylets - 1):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        _wait_for_job_agent(f"http://127.0.0.1:{port}")
        yield cluster, f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()
        os.environ["PATH"] = path


@contextmanager
def raylets(num_raylets: int, num_cpus: int) -> Iterator[Cluster]:
    """A cluster of nodes with *num_cpus* each, without dashboard or jobs: for commands with ``--address``."""
    node: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(num_raylets - 1):
            cluster.add_node(num_cpus=num_cpus)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def raylet_pid(node: Any) -> int:
    """Process id of the raylet of a cluster's *node*, whose children are the node's workers."""
    return int(node.all_processes["raylet"][0].process.pid)
