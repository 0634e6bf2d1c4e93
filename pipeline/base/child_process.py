"""Child processes that are started by exec, and the frames that they and their parent exchange.

They are never forked beside threads of gloo, NCCL or boto3. They compute with one thread, never outlive their parent,
and do not get the Ctrl-C that is meant for it. Parent and child talk over two pipes or over one socket, in frames: the
length of a body in 8 bytes (little endian), then the body::

    parent                                                  child, run as: python -P -m MODULE PARENT CHANNEL ARGUMENTS
    child = ChildProcess.start(module, arguments)           channel, arguments = ChildChannel.open(sys.argv)
    child.send(body)                                        body = channel.receive()
    bodies = child.receive(timeout)                         channel.send(*parts)
    child.close()                                           (the input ends)
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal, Self

ChannelKind = Literal["pipes", "socket"]
_PIPES = "pipes"  # as the argument CHANNEL; else that is the number of the socket

_LENGTH = struct.Struct("<Q")  # the header of each body: its length in bytes
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# of glibc: else it gives the pixels of each image back to the kernel, which costs a third of the time of a check
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
_KILLED_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP}  # what no process dies of by its own doing
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PIPE_BYTES = 1 << 20  # so that a child has work to go on with while its parent does something else
_READ_BYTES = 1 << 18  # of one read
_WRITE_PARTS = 16  # buffers of one write


@dataclass(frozen=True)
class ChildExit:
    """How a child ended.

    *code* is that of ``subprocess``, negative for a signal; None: it had not ended by itself. *killed_from_outside*: by
    a signal that neither it nor its parent sent. *last_line*: of its stderr, or "exit code 1" when there is none.
    """

    code: int | None
    killed_from_outside: bool
    last_line: str


class ChildProcess:
    """A running child, as its parent sees it. Made by ``start``. Not for use by two threads at once."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: _ParentChannel, errors: IO[bytes], end_seconds: float
    ) -> None:
        self.pid, self._process, self._errors = process.pid, process, errors
        self._channel, self._end_seconds = channel, end_seconds
        self._unsent: deque[memoryview] = deque()  # two buffers of each message: its header, its body
        self._received = bytearray()
        self._poll = select.poll()
        self._poll.register(channel.source, select.POLLIN)
        self._polls_for_room = False
        self._exit: ChildExit | None = None
        self.ended = False  # it has closed its side, or is gone

    @classmethod
    def start(
        cls,
        module: str,
        arguments: Sequence[str] = (),
        *,
        channel: ChannelKind = "pipes",
        inherit: Sequence[int] = (),
        end_seconds: float = 30.0,
    ) -> Self:
        """Run *module* of this package in a fresh interpreter, with the descriptors *inherit*. Raises OSError.

        It ends with the thread that calls this. *end_seconds*: how long its end is waited for.
        """
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            execute = _execute_on_socket if channel == "socket" else _execute_on_pipes
            process, ends = execute(module, arguments, errors, inherit)
        except OSError:
            errors.close()
            raise
        for number in (ends.source, ends.sink):
            os.set_blocking(number, False)
        return cls(process, ends, errors, end_seconds)

    def fileno(self) -> int:
        """The descriptor to be polled for what it sends."""
        return self._channel.source

    def send(self, body: bytes) -> None:
        """Queue a frame. Never blocks: it goes out with the next calls of ``flush`` and ``receive``."""
        self._unsent.append(memoryview(_LENGTH.pack(len(body))))
        self._unsent.append(memoryview(body))

    def send_raw(self, data: bytes) -> None:
        """The same without the length before it, for messages of a fixed size."""
        self._unsent.append(memoryview(b""))
        self._unsent.append(memoryview(data))

    @property
    def num_unsent(self) -> int:
        """Messages of which not all was sent."""
        return (len(self._unsent) + 1) // 2

    def flush(self) -> None:
        """Send of the queue what can be sent at once."""
        while self._write():
            pass

    def receive(self, timeout: float, for_room: bool = False) -> list[memoryview] | None:
        """Send and receive what can be at once; wait up to *timeout* seconds when that is nothing.

        The bodies that are complete, possibly none. None when nothing was sent or received. *for_room*: also wait for
        room to send; else a large queue would wake this process for each page that the child takes.
        """
        moved = self._write() + self._read()
        if not moved and not self.ended and timeout:
            self._set_polls_for_room(for_room and bool(self._unsent))
            self._poll.poll(timeout * 1000)
            moved = self._write() + self._read()
        return self._frames() if moved or self.ended else None

    def last_frames(self) -> list[memoryview]:
        """The bodies that a child which has ended, or was ended, had still sent."""
        while self._read():
            pass
        return self._frames()

    def cpu_time(self) -> tuple[str, float]:
        """Its state and seconds of CPU, see ``cpu_time_of``."""
        return cpu_time_of(str(self.pid))

    def end(self) -> ChildExit:
        """End it, if it has not ended. What it sent can still be read."""
        if self._exit is None:
            code = self._process.poll()
            if code is None and self.ended:
                code = self._wait()  # its side of the channel closes a moment before it is gone
            if code is None:
                self._process.kill()
                self._wait()  # one that hangs in a disk is left to the kernel
            killed = code is not None and -code in _KILLED_FROM_OUTSIDE
            self._exit = ChildExit(code, killed, self._last_line())
        return self._exit

    def close(self) -> ChildExit:
        """End it and give back what belongs to it."""
        result = self.end()
        for file in self._channel.files:
            with contextlib.suppress(OSError):
                file.close()
        self._errors.close()
        return result

    def _wait(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(self._end_seconds)
        return None

    def _last_line(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def _set_polls_for_room(self, polls: bool) -> None:
        if polls == self._polls_for_room:
            return
        self._polls_for_room = polls
        source, sink = self._channel.source, self._channel.sink
        if source == sink:
            self._poll.modify(sink, select.POLLIN | select.POLLOUT if polls else select.POLLIN)
        elif polls:
            self._poll.register(sink, select.POLLOUT)
        else:
            self._poll.unregister(sink)

    def _write(self) -> int:
        """Bytes that were sent."""
        if not self._unsent:
            return 0
        try:
            total = left = os.writev(self._channel.sink, list(islice(self._unsent, _WRITE_PARTS)))
        except BlockingIOError:
            return 0
        except ConnectionError:
            self.ended = True
            return 0
        while self._unsent and left >= len(self._unsent[0]):
            left -= len(self._unsent.popleft())
        if left:
            self._unsent[0] = self._unsent[0][left:]
        return total

    def _read(self) -> int:
        """Bytes that were received."""
        try:
            data = os.read(self._channel.source, _READ_BYTES)
        except BlockingIOError:
            return 0
        except ConnectionError:
            data = b""
        self.ended = self.ended or not data
        self._received += data
        return len(data)

    def _frames(self) -> list[memoryview]:
        bodies, start, received = [], 0, self._received
        while len(received) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(received, start)[0]
            if end > len(received):
                break
            bodies.append(memoryview(bytes(received[start + _LENGTH.size : end])))
            start = end
        del received[:start]
        return bodies


@dataclass(frozen=True)
class _ParentChannel:
    """Descriptors of a parent's ends, and the files that own them."""

    files: Sequence[IO[bytes] | socket.socket]
    sink: int
    source: int


def _execute_on_socket(
    module: str, arguments: Sequence[str], errors: IO[bytes], inherit: Sequence[int]
) -> tuple[subprocess.Popen[bytes], _ParentChannel]:
    own, remote = socket.socketpair()
    with remote:
        number = remote.fileno()
        try:
            process = _execute(module, [str(number), *arguments], errors, [number, *inherit])
        except OSError:
            own.close()
            raise
    return process, _ParentChannel([own], own.fileno(), own.fileno())


def _execute_on_pipes(
    module: str, arguments: Sequence[str], errors: IO[bytes], inherit: Sequence[int]
) -> tuple[subprocess.Popen[bytes], _ParentChannel]:
    process = _execute(module, [_PIPES, *arguments], errors, inherit, subprocess.PIPE)
    files = [file for file in (process.stdin, process.stdout) if file]
    for file in files:
        with contextlib.suppress(OSError):  # over the user's allowance: then it stays at 64 kB
            fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    sink, source = (file.fileno() for file in files)
    return process, _ParentChannel(files, sink, source)


def _execute(
    module: str, arguments: Sequence[str], errors: IO[bytes], inherit: Sequence[int], stream: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(os.getpid()), *arguments],
        stdin=stream,
        stdout=stream,
        stderr=errors,
        pass_fds=inherit,
        env=os.environ | _ONE_THREAD | _KEEP_MEMORY | {"PYTHONPATH": path},
        start_new_session=True,  # a Ctrl-C meant for the parent does not reach it, not even while it starts
    )


class ChildChannel:
    """In the child: the way to its parent. ``send`` may be called by any thread."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink, self._sending = source, sink, threading.Lock()

    @classmethod
    def open(cls, argv: Sequence[str]) -> tuple[Self, list[str]]:
        """The channel, and the arguments that the parent gave. To be called first, by the main thread.

        From here on the process ends with its parent. Pipes are taken out of the way of whatever else reads or prints:
        stdin is empty, and what is printed goes to stderr.
        """
        _, parent, kind, *arguments = argv
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with_parent(int(parent))
        if kind != _PIPES:
            return cls(int(kind), int(kind)), arguments
        source, sink = os.dup(0), os.dup(1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        return cls(source, sink), arguments

    def receive(self) -> bytes | None:
        """The body of the next frame; None when the parent sends no more."""
        head = self.receive_raw(_LENGTH.size)
        return None if head is None else self.receive_raw(_LENGTH.unpack(head)[0])

    def receive_raw(self, num_bytes: int) -> bytes | None:
        """The next *num_bytes*, of which no length is sent; None when they do not come."""
        data = self._read(num_bytes) if num_bytes else b""
        if len(data) == num_bytes:  # nearly always
            return data
        parts = [data]
        while data and (missing := num_bytes - sum(map(len, parts))):
            data = self._read(missing)
            parts.append(data)
        return b"".join(parts) if data else None

    def _read(self, num_bytes: int) -> bytes:
        try:
            return os.read(self._source, num_bytes)
        except ConnectionError:
            return b""

    def send(self, *parts: bytes) -> None:
        """Send one frame whose body is *parts*. When the parent is gone, this process ends."""
        left = memoryview(b"".join([_LENGTH.pack(sum(map(len, parts))), *parts]))
        with self._sending:
            try:
                while left:
                    left = left[os.write(self._sink, left) :]
            except ConnectionError:
                os._exit(0)


def _end_with_parent(parent: int) -> None:
    """Be killed when *parent*, or the thread of it that started this process, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def cpu_time_of(task: str) -> tuple[str, float]:
    """Of a process or thread below ``/proc``: its state (R, S, D, T, Z) and the seconds of CPU it has used.

    Z when it is gone.
    """
    try:
        fields = Path(f"/proc/{task}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
