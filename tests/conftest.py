"""Fixtures of all tests. Each test that starts a server, a cluster or a process group ends it."""

import os
from typing import Any

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
from tests.support.s3 import s3_bucket, s3_server, s3_workspace
from tests.support.sharing import Sharing, starts_cluster

__all__ = ["calm", "s3_bucket", "s3_server", "s3_workspace"]


_NO_SERVICE = ("tests/unit/", "tests/structure/")
_SERVICE_FIXTURES = {"calm", "s3_server", "s3_workspace", "process_group"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests with a cluster take longest, so they begin. What needs a service is marked, so that others go alone."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if not item.nodeid.startswith(_NO_SERVICE) or _SERVICE_FIXTURES.intersection(fixtures):
            item.add_marker("service")
    items.sort(key=lambda item: not starts_cluster(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    """With ``-n 2``."""
    config.option.loadscopereorder = False
    return Sharing(config, log)
