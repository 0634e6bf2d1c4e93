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

from tests.support.calm import calm
from tests.support.s3 import s3_server, s3_workspace

__all__ = ["calm", "s3_server", "s3_workspace"]
