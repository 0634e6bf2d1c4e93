"""ProcessIdentity: which process holds a lease or sends heartbeats, and whether it has ended.

A process number means something only where it was given out: on one host, since its last start, in one namespace of
process numbers (each container has its own). The start time tells a process from a later one with the same number.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_BOOT_ID, _PID_NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")  # of Linux
_BOOT_CHARACTERS = 8  # of the boot id that a place text holds
_START_TIME_FIELD = 19  # of /proc/PID/stat, counted behind the name of the program: field 22 of proc(5)


@dataclass(frozen=True)
class ProcessIdentity:
    """One process. What cannot be read is "": on a system without ``/proc``, or where a stored lease lacks it.

    ``start_ticks``: when it was started, in clock ticks since the machine was.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: str = ""

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls.of_pid(os.getpid())

    @classmethod
    def of_pid(cls, pid: int) -> Self:
        """The process that has the number *pid* here and now."""
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, _start_ticks(pid))

    @classmethod
    def from_place(cls, place_text: str, pid: int) -> Self:
        """The process *pid* of a stored lease, which keeps no start time: it is judged by its number alone."""
        host, boot_id, pid_namespace = [*place_text.split(" ", 2), "", ""][:3]
        return cls(host, boot_id, pid_namespace, pid)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Self:
        """The process that ``to_message`` described. Raises KeyError when something is missing."""
        boot_id, _, pid_namespace = message["machine"].partition(" ")
        if not pid_namespace:
            boot_id = ""  # then it is the name of the host
        return cls(message["host"], boot_id, pid_namespace, message["pid"], message["born"])

    def to_message(self) -> dict[str, Any]:
        """As a rank and its driver send it to each other; the names are those of the wire."""
        return {"host": self.host, "machine": self._machine, "pid": self.pid, "born": self.start_ticks}

    @property
    def place_text(self) -> str:
        """``host boot8 namespace``, as leases store it: where the process number means something."""
        return f"{self.host} {self.boot_id[:_BOOT_CHARACTERS]} {self.pid_namespace}".strip()

    def same_machine(self, process: ProcessIdentity) -> bool:
        """True when both run under one kernel in one namespace: then each can look at the other, and kill it."""
        return self._machine == process._machine

    def is_alive(self) -> bool:
        """True only when it is a process of this place that is still there."""
        return self.pid > 0 and self._is_of_this_place() and not self.is_gone()

    def is_gone(self) -> bool:
        """True only when it was a process of this place that is no longer there, or whose number another one has.

        The host's name must agree as well: copies of a running virtual machine share their boot id.
        """
        if self.pid <= 0 or not self._is_of_this_place():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):  # OverflowError: above any number that a process can have
            return True
        except PermissionError:  # somebody else's process
            pass
        if not self.start_ticks:
            return False
        return _start_ticks(self.pid) not in ("", self.start_ticks)

    def kill(self) -> bool:
        """Kill -9 it; False, and nothing done, unless it is on this machine, still the same one, and not this one."""
        current = ProcessIdentity.current()
        if not self.same_machine(current) or self.pid == current.pid or _start_ticks(self.pid) != self.start_ticks:
            return False
        try:
            os.kill(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    @property
    def _machine(self) -> str:
        """Kernel and namespace; the host's name where the system does not report them."""
        return f"{self.boot_id} {self.pid_namespace}" if self.boot_id and self.pid_namespace else self.host

    def _is_of_this_place(self) -> bool:
        return self.place_text == ProcessIdentity(socket.gethostname(), _boot_id(), _pid_namespace(), 0).place_text


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink(_PID_NAMESPACE)
    except OSError:
        return ""


def _start_ticks(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[_START_TIME_FIELD]
    except OSError:
        return ""
