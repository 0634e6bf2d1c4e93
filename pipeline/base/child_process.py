"""Child processes that are started by exec: never a fork beside threads of gloo, NCCL or boto3.

They compute with one thread, never outlive their parent, do not get the Ctrl-C that is meant for it, and are watched by
the clock that the kernel keeps of them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# of glibc: it gives the pixels of each image back to the kernel, which costs a third of the time of a check
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
KILLED_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP}  # what no process dies of by its own doing
_PR_SET_PDEATHSIG = 1
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def start(
    module: str,
    arguments: Sequence[str],
    *,
    errors: IO[bytes],
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Run *module* of this package in a fresh interpreter; *errors* takes what it prints there. Raises OSError."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=errors,
        pass_fds=pass_fds,
        env=os.environ | ONE_THREAD | KEEP_MEMORY | {"PYTHONPATH": path},
        start_new_session=True,  # a Ctrl-C meant for the parent does not reach it, not even while it starts
    )


def end_with_parent(parent: int) -> None:
    """In the child: be killed when *parent*, or the thread of it that started this process, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def cpu_time_of(task: str) -> tuple[str, float]:
    """Of a process or thread below ``/proc``: its state (R, S, D, T, Z) and the seconds of CPU it has used.

    Z when it is gone.
    """
    try:
        fields = Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def last_stderr_line(errors: IO[bytes], process: subprocess.Popen[Any]) -> str:
    """The last line that an ended *process* printed to *errors*, or its exit code when it printed nothing."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {process.returncode}"
