"""Where the number of a process means something, and whether a process there has ended."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any


def here() -> str:
    """The host, its start, and the namespace of processes: two containers with one host name are two places."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    started = boot.read_text().strip()[:8] if boot.exists() else ""
    space = os.readlink("/proc/self/ns/pid") if os.path.lexists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()} {started} {space}".strip()


def is_gone(place: str, pid: int) -> bool:
    """True when *pid* was a process of this very place that is no longer there."""
    if place != here():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _place() -> str:
    """Where a process number means something: the host, since its start, and the namespace of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    started = boot.read_text().strip()[:8] if boot.exists() else ""
    space = os.readlink("/proc/self/ns/pid") if os.path.lexists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()} {started} {space}".strip()


def whoami() -> dict[str, Any]:
    """This process: name of its host, what tells the host and its processes apart from others, its id and its birth."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}


def kill(culprit: dict[str, Any]) -> bool:
    """Kill -9 the process that ``whoami`` named, when it is on this host and still the same one."""
    if culprit["machine"] != _machine() or culprit["pid"] == os.getpid() or _born(culprit["pid"]) != culprit["born"]:
        return False
    try:
        os.kill(culprit["pid"], signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _machine() -> str:
    """Of the kernel's boot and the space of process ids: equal where a process can be seen and killed by its id."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str:
    """When the process was started, in ticks since the machine was; "" when it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
