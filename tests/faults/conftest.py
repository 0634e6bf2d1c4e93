"""What the fault tests share: one cluster, one corpus, and what undisturbed runs make of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from infra.local.s3_server import LocalS3
from tests.support.cluster import raylets
from tests.support.faults import SLOW, Sharding, content, make_photographs
from tests.support.s3 import reach
from tests.support.scheduling import Calm, calm_runs


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One raylet with two CPUs."""
    with raylets(1, 2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def calm() -> Calm:
    """What an undisturbed evaluation of a size finds."""
    return calm_runs()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images in nested classes, and four files that must be rejected. Nobody changes it."""
    return make_photographs(tmp_path_factory.mktemp("photographs"), 300)


@pytest.fixture
def sharding(cluster: Cluster, photographs: Path) -> Sharding:
    """The command on the shared cluster; a new mark for each test."""
    return Sharding(photographs, address=cluster.address)


@pytest.fixture
def slow_sharding(cluster: Cluster, photographs: Path) -> Sharding:
    """The same, writing slowly."""
    return Sharding(photographs, SLOW, cluster.address)


@pytest.fixture(scope="session")
def calm_content(cluster: Cluster, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest by name of all that an undisturbed ``sharding`` leaves in its workspace."""
    return _calm(Sharding(photographs, address=cluster.address), tmp_path_factory.mktemp("calm-shards"))


@pytest.fixture(scope="session")
def slow_calm_content(cluster: Cluster, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same of ``slow_sharding``."""
    return _calm(Sharding(photographs, SLOW, cluster.address), tmp_path_factory.mktemp("slow-calm-shards"))


def _calm(sharding: Sharding, workspace: Path) -> dict[str, str]:
    ended = sharding.run(workspace)
    assert ended.code == 0, ended.told
    return content(workspace)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    """An S3 server of its own, to be stopped."""
    with LocalS3(tmp_path / "s3") as server:
        reach(server, monkeypatch, tmp_path)
        yield server
