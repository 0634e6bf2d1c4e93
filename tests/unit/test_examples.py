"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.base.store import open_store
from tests.support.datasets import make_dataset

ROOT = Path(__file__).parents[2]


def run(example: str, *arguments: str) -> str:
    """What it prints."""
    command = [sys.executable, str(ROOT / "examples" / example), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    make_dataset(open_store(str(tmp_path)), "photos", num_samples=24, num_classes=3)
    return str(tmp_path)


def test_a_training_loop_resumes_exactly(workspace: str) -> None:
    assert "resumed exactly" in run("train_loop.py", workspace, "photos")


def test_webdataset_reads_the_shards(workspace: str) -> None:
    assert "samples: 24 by class: {0: 8, 1: 8, 2: 8}" in run("read_with_webdataset.py", workspace, "photos")


def test_the_recipe_can_be_planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vitpipe"])
    recipe = str(ROOT / "examples" / "own_recipe.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["plan", recipe, "--images", "100000", "--classes", "100", "--json"])
    assert ended.value.code == 0
    assert '"run": "photos-s16"' in capsys.readouterr().out
