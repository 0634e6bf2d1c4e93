"""``vitpipe probe`` and ``vitpipe transfer`` on the run of the calm chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.calm import Calm
from tests.support.command import vitpipe

pytestmark = pytest.mark.timeout(400)
TASK = ("--train", "digits-train", "--test", "digits-test")


@pytest.fixture
def workspace(calm: Calm, tmp_path: Path) -> Path:
    """One of its own, to be changed."""
    shutil.copytree(calm.workspace, tmp_path / "workspace")
    return tmp_path / "workspace"


def test_a_probe_of_the_last_checkpoint_is_recorded_once_and_told(workspace: Path) -> None:
    run = next((workspace / "runs").iterdir()).name
    command = ("probe", run, "shots=3", "--evaluator", "fewshot", *TASK, "-w", workspace, "--json")
    done = vitpipe(*command)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (top1,) = [row for row in told["scores"] if row["metric"] == "top1" and json.loads(row["settings"])["shots"] == 3]
    assert (top1["dataset"], top1["evaluator"], top1["step"]) == ("digits-test", "fewshot", 300)
    assert {row["evaluator"] for row in told["scores"]} == {"fewshot"}
    before = sorted(path.relative_to(workspace) for path in (workspace / "evaluations").rglob("*.json"))
    again = vitpipe(*command)
    assert json.loads(again.stdout)["scores"] == told["scores"]
    assert sorted(path.relative_to(workspace) for path in (workspace / "evaluations").rglob("*.json")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("probe", *TASK), "what is to be judged?"),
        (("probe", "RUN", "shots=5", *TASK), "a setting of which evaluator?"),
        (("probe", "RUN", "shots=5", "--evaluator", "knn", *TASK), "knn has no setting 'shots'"),
        (("probe", "RUN", "--evaluator", "finetune", *TASK), "there is no such probe"),
        (("transfer", "no-such-run", *TASK), "no run 'no-such-run'"),
        (("transfer", "RUN", "--train", "digits-train", "--test", "digits-train"), "the same dataset"),
        (("transfer", "RUN", "--train", "digits-train", "--test", "nowhere"), "no dataset 'nowhere'"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(calm: Calm, arguments: tuple[str, ...], said: str) -> None:
    run = next((calm.workspace / "runs").iterdir()).name
    done = vitpipe(*(run if one == "RUN" else one for one in arguments), "-w", calm.workspace)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
