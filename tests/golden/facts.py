"""What is recorded of a golden workspace, read from its files with json alone."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RECIPE = HERE / "recipe.yaml"
SUITE = HERE / "suite.yaml"
_CPU = ("cpu family", "model", "model name", "flags")


def made_with() -> dict[str, Any]:
    """What decides the order of float sums: the processor as torch and its libraries see it, and torch."""
    cpu: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().split("\n\n")[0].splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in _CPU:
            cpu[name.strip()] = value.strip()
    flags = cpu.pop("flags", "").split()
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cpu": cpu,
        "vector_flags": sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma"))),
        "torch": torch.__version__,
    }


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of every file below *folder*, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def losses_of(workspace: Path, attempt: str) -> dict[str, str]:
    """Losses that an attempt of the run logged, in hex, by step."""
    found: dict[str, str] = {}
    for file in sorted((workspace / "runs" / "golden" / "metrics" / attempt).glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found |= {str(row["step"]): row["loss"] for row in rows}
    return found


def scores_of(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``scores --json``, in a fixed order."""
    return sorted(told["means"], key=lambda row: json.dumps(row, sort_keys=True))
