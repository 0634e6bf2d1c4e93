"""The command as a person runs it: the installed script, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SCRIPT = Path(sys.executable).with_name("vitpipe")
SMALL = Path(__file__).with_name("small.yaml")
CHAIN_SECONDS = 300  # a guard against hanging, not a claim


def start(*arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start ``vitpipe`` with *arguments*, its output piped as text."""
    command = [str(SCRIPT), *(str(argument) for argument in arguments)]
    full = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=full, **options)


def vitpipe(
    *arguments: str | Path, env: dict[str, str] | None = None, timeout: float = CHAIN_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run ``vitpipe`` to its end."""
    process = start(*arguments, env=env)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"vitpipe {arguments} did not end:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_small(workspace: str | Path, out: Path, *overrides: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The small chain into *workspace*, its page into *out*; the summary."""
    done = vitpipe("run", SMALL, *overrides, "--workspace", workspace, "--out", out, "--json", env=env)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def shard_digests(workspace: Path, dataset: str) -> list[str]:
    """sha256 of each shard of a dataset in a local workspace, as its table says."""
    digests: list[str] = pq.read_table(workspace / "datasets" / dataset / "shards.parquet")["sha256"].to_pylist()
    return digests


def comparable(summary: dict[str, Any]) -> dict[str, Any]:
    """What two runs of one recipe must agree in, to the last bit."""
    return {"dataset": summary["dataset"], "losses": summary["run"]["losses"], "scores": summary["scores"]}
