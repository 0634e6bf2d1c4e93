"""The chain as a Ray job on a cluster of three raylets gives what it gives directly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.calm import Calm
from tests.support.cluster import ray_cluster
from tests.support.command import SMALL, comparable, vitpipe

pytestmark = pytest.mark.timeout(500)


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    with ray_cluster(3) as (_, address):
        yield address


def summary_of(workspace: Path) -> dict[str, object]:
    return comparable(json.loads((workspace / "reports" / "small" / "summary.json").read_text()))


def test_submitted_chain_equals_the_direct_one(dashboard: str, calm: Calm, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    done = vitpipe("submit", "run", SMALL, "--workspace", workspace, "--address", dashboard, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert summary_of(workspace) == comparable(calm.summary)


@pytest.mark.long
def test_plain_ray_job_submit_equals_the_direct_one(dashboard: str, calm: Calm, tmp_path: Path) -> None:
    tree = yaml.safe_load(SMALL.read_text()) | {"workspace": str(tmp_path / "workspace")}
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "recipe.yaml").write_text(yaml.safe_dump(tree))
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "job", "submit", "--address", dashboard, "--working-dir", tmp_path / "job", "--"]
    done = subprocess.run(
        [*command, "python", "-m", "jobs.run", "recipe.yaml"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary_of(tmp_path / "workspace") == comparable(calm.summary)


def test_failing_job_is_told_with_exit_code_1(dashboard: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"no image")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"workspace": str(tmp_path / "ws"), "shard": [{"name": "photos", "source": str(photos)}]})
    )
    done = vitpipe("submit", "shard", recipe, "--address", dashboard)
    assert done.returncode == 1
    assert "no image of the corpus can be used" in done.stderr
    assert not [path for path in (tmp_path / "ws").rglob("*") if path.is_file()]
