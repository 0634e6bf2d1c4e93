"""The whole chain as a person runs it: what it leaves, that it is exact, and that it survives being killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import webdataset

from tests.support.browser import inspect_page
from tests.support.calm import Calm
from tests.support.command import SMALL, comparable, run_small, shard_digests, start, vitpipe

pytestmark = pytest.mark.timeout(400)
_AGENTS = {"DashboardAgent", "RuntimeEnvAgent"}


def test_summary_holds_what_is_promised(calm: Calm) -> None:
    summary = calm.summary
    assert summary["dataset"]["samples"] == 1197
    assert summary["dataset"]["rejected"] == 0
    assert [step for step, _ in summary["run"]["losses"]] == list(range(25, 301, 25))
    assert all(float.fromhex(loss) > 0 for _, loss in summary["run"]["losses"])
    assert {"shard", "pretrain", "evaluate"} <= set(summary["seconds"])
    assert Path(summary["report"]) == calm.out / "report.html"
    fields = {"evaluator", "dataset", "step", "metric", "value", "low", "high", "num_samples", "seed", "baseline"}
    assert all(fields <= set(score) for score in summary["scores"])
    assert json.loads((calm.out / "summary.json").read_text()) == summary


def test_every_checkpoint_has_every_probe_and_both_baselines(calm: Calm) -> None:
    found = {(score["evaluator"], score["step"], score["baseline"]) for score in calm.summary["scores"]}
    for probe in ("linear", "knn", "fewshot"):
        assert {(probe, 150, None), (probe, 300, None), (probe, 0, "untrained"), (probe, None, "pixels")} <= found
    assert {("finetune", 300, None), ("finetune", 0, "untrained"), ("finetune", None, "pixels")} <= found
    assert ("finetune", 150, None) not in found


def test_scores_table_is_the_summary(calm: Calm) -> None:
    rows = pq.read_table(calm.out / "scores.parquet").to_pylist()
    told = [*calm.summary["scores"], *calm.summary["no_results"]["scores"]]
    assert sorted(row["value"] for row in rows) == sorted(score["value"] for score in told)
    assert not any(score["metric"].startswith("oracle_") for score in calm.summary["scores"])


def test_stock_readers_read_the_shards(calm: Calm) -> None:
    shards = sorted((calm.workspace / "datasets" / "digits-train").glob("*.tar"))
    listed = [subprocess.check_output(["tar", "tf", shard], text=True).splitlines() for shard in shards]
    dataset = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)
    samples = list(dataset)
    assert sum(len(names) for names in listed) == 2 * len(samples) == 2 * 1197
    assert {"png", "cls"} <= set(samples[0])


def test_verify_passes_then_names_a_shard_with_one_changed_byte(calm: Calm, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(calm.workspace / "datasets", workspace / "datasets")
    assert vitpipe("verify", "--workspace", workspace, "--full").returncode == 0
    shard = workspace / "datasets" / "digits-train" / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1
    shard.write_bytes(data)
    done = vitpipe("verify", "--workspace", workspace)
    assert done.returncode == 1
    assert "digits-train: shard-000001.tar" in done.stdout
    assert "shard-000000.tar" not in done.stdout


def test_page_of_a_real_run_opens_without_error_or_empty_picture(calm: Calm) -> None:
    findings = inspect_page(calm.out / "report.html", Path("build/screenshots/chain.png"))
    assert findings.console == ()
    assert findings.pictures
    assert all(picture.width > 0 and picture.num_colours > 1 for picture in findings.pictures)


@pytest.mark.long
def test_same_seed_in_another_folder_gives_the_same_bits(calm: Calm, tmp_path: Path) -> None:
    again = run_small(tmp_path / "workspace", tmp_path)
    assert comparable(again) == comparable(calm.summary)
    for dataset in ("digits-train", "digits-test"):
        assert shard_digests(tmp_path / "workspace", dataset) == shard_digests(calm.workspace, dataset)


@pytest.mark.long
def test_a_bucket_gives_the_same_bits_as_a_folder(calm: Calm, tmp_path: Path, s3_workspace: str) -> None:
    in_bucket = run_small(s3_workspace, tmp_path)
    assert comparable(in_bucket) == comparable(calm.summary)
    verified = vitpipe("verify", "--workspace", s3_workspace, "--json")
    assert verified.returncode == 0, verified.stderr


def test_command_given_again_does_nothing_twice(calm: Calm) -> None:
    attempts = sorted((calm.workspace / "runs" / "small" / "attempts").iterdir())
    done = vitpipe("run", SMALL, "--workspace", calm.workspace, "--json")
    assert done.returncode == 0, done.stderr
    assert "is complete" in done.stderr
    assert comparable(json.loads(done.stdout)) == comparable(calm.summary)
    assert sorted((calm.workspace / "runs" / "small" / "attempts").iterdir()) == attempts


def test_killed_in_pretraining_and_given_again_has_the_losses_of_a_calm_run(calm: Calm, tmp_path: Path) -> None:
    """SIGKILL of the command between the checkpoints of step 150 and of step 300; its cluster dies with it."""
    workspace = tmp_path / "workspace"
    steps = workspace / "runs" / "small" / "checkpoints"
    process = start("run", SMALL, "--workspace", workspace, "--out", tmp_path)
    try:
        _wait_for(steps / "step-00000000" / "checkpoint.json", process)
        family = psutil.Process(process.pid).children(recursive=True)
        working = [child for child in family if child.name().partition("::")[2] not in _AGENTS]
        _wait_for(steps / "step-00000150" / "checkpoint.json", process)
    finally:
        process.kill()
        process.communicate()
    # Ray's agents notice up to two minutes later; they neither compute nor write, and the next command does not wait.
    _, alive = psutil.wait_procs(working, timeout=60)
    assert not alive, "the killed command left processes at work"
    assert not (steps / "step-00000300" / "checkpoint.json").exists(), "the kill came too late to test anything"
    again = run_small(workspace, tmp_path)
    assert comparable(again) == comparable(calm.summary)
    assert len(list((workspace / "runs" / "small" / "attempts").iterdir())) == 2


@pytest.mark.long
def test_sigterm_in_pretraining_ends_with_exit_code_3(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    process = start("run", SMALL, "--workspace", workspace, "--out", tmp_path)
    try:
        _wait_for(workspace / "runs" / "small" / "checkpoints" / "step-00000000" / "checkpoint.json", process)
        process.terminate()
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 3
    assert "vitpipe: run small was stopped by SIGTERM; " in err
    assert "the same command goes on where it stopped" in err


def _wait_for(path: Path, process: subprocess.Popen[str], limit_seconds: float = 200) -> None:
    """Until *path* appears, while *process* lives. A file cannot be waited for in one call on every platform."""
    deadline = time.monotonic() + limit_seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
