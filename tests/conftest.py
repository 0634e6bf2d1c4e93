"""Fixtures of all tests. Each test that starts a server, a cluster or a process group ends it."""

import os

# One thread per process: tests start several processes on few cores, and sums then have one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Nothing of the person who runs the tests decides what they find.
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.pop("RAY_ADDRESS", None)

import pytest

from tests.support.calm import calm
from tests.support.s3 import s3_server, s3_workspace

__all__ = ["calm", "s3_server", "s3_workspace"]

_CLUSTERS = ("tests/end_to_end", "tests/faults", "tests/ray")  # the longest, so they come first


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the tests among processes: all that start a Ray cluster in one, the others file by file.

    Two clusters on one machine give their workers the same range of ports, and wait for each other's.
    """
    of_clusters = {item: item.nodeid.startswith(_CLUSTERS) for item in items}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("clusters" if of_clusters[item] else item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not of_clusters[item])
