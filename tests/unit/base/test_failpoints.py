"""Fail points kill the process that reaches them, and only where a test asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CODE = "from pipeline.base.failpoints import fail_point; fail_point('a.b'); fail_point('c.d'); print('alive')"


def run(point: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"VITPIPE_FAIL_AT": point}
    return subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)


def test_the_named_point_kills() -> None:
    assert run("c.d").returncode == -signal.SIGKILL


def test_other_points_do_nothing() -> None:
    assert [run(point).stdout for point in ("", "a", "a.b.c")] == ["alive\n"] * 3


def test_with_a_file_the_first_one_dies_and_the_others_live(tmp_path: Path) -> None:
    point = f"a.b:{tmp_path / 'once'}"
    assert [run(point).returncode for _ in range(3)] == [-signal.SIGKILL, 0, 0]
