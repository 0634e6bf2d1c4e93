"""The decoding child as its parent sees it: pipes, frames, its clock and its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import tempfile
import time
from collections import deque
from itertools import islice

from pipeline.base import child_process as children
from pipeline.base.errors import FailedError
from pipeline.images.sandbox_worker import ANSWERS, LENGTH, READY, ChildSettings

_PROGRAM = "pipeline.images.sandbox_worker"
_PIPE_BYTES = 1 << 20  # so that the child has images to go on with while its parent does something else
_READ_BYTES = 1 << 18
_AHEAD = 3  # images of which the child should have all bytes
_PLENTY, _NAP_SECONDS = 8, 0.002  # with so many to go on with, several answers are fetched at once
_VECTOR = 16  # buffers of one write
_START_TICKS = 600  # of 0.1 s in which nothing came
_END_SECONDS = 30.0


class Child:
    """A running child. Raises FailedError when it cannot be started."""

    def __init__(self, settings: ChildSettings) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self._process = children.start(
                _PROGRAM,
                [settings.to_json()],
                errors=self._errors,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            self._errors.close()
            raise _no_start(str(error)) from None
        self.pid = self._process.pid
        self._streams = [stream for stream in (self._process.stdin, self._process.stdout) if stream]
        self._to, self._from = (stream.fileno() for stream in self._streams)
        for number in (self._to, self._from):
            os.set_blocking(number, False)
            with contextlib.suppress(OSError):  # over the user's allowance: then it stays at 64 kB
                fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._unsent: deque[memoryview] = deque()
        self._unanswered = 0
        self._received = bytearray()
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)
        self._polls_output = False
        self.ended = False

    def wait_until_ready(self) -> bool:
        """True once it is ready, False when it was killed from outside before. Raises FailedError."""
        for _ in range(_START_TICKS):
            for body in self.exchange(0.1) or ():
                if body == READY:
                    return True
            if self.ended:
                if self.close():
                    return False
                break
        raise _no_start(children.last_stderr_line(self._errors, self._process))

    def queue(self, data: bytes) -> None:
        """Send *data* when there is room for it."""
        self._unsent.append(memoryview(LENGTH.pack(len(data))))
        self._unsent.append(memoryview(data))
        self._unanswered += 1

    @property
    def num_unsent(self) -> int:
        """Images of which not all was sent."""
        return (len(self._unsent) + 1) // 2

    @property
    def _starves(self) -> bool:
        """Whether it will soon have nothing to do. Else to wait for room in the pipe would be to wake for each page."""
        return bool(self._unsent) and self._unanswered - self.num_unsent < _AHEAD

    def exchange(self, seconds: float) -> list[memoryview] | None:
        """Send and receive what can be at once; wait up to *seconds* when that is nothing.

        The bodies of the frames that are complete. None when nothing could be sent or received in that time.
        """
        moved = self._send() + self._receive()
        if not moved and not self.ended and seconds:
            if self._polls_output != self._starves:
                self._polls_output = not self._polls_output
                if self._polls_output:
                    self._poll.register(self._to, select.POLLOUT)
                else:
                    self._poll.unregister(self._to)
            if self._unanswered - self.num_unsent >= _PLENTY:
                time.sleep(_NAP_SECONDS)
            self._poll.poll(seconds * 1000)
            moved = self._send() + self._receive()
        return self._frames() if moved or self.ended else None

    def _send(self) -> int:
        if not self._unsent:
            return 0
        try:
            total = sent = os.writev(self._to, list(islice(self._unsent, _VECTOR)))
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            self.ended = True
            return 0
        while self._unsent and sent >= len(self._unsent[0]):
            sent -= len(self._unsent.popleft())
        if sent:
            self._unsent[0] = self._unsent[0][sent:]
        return total

    def _receive(self) -> int:
        try:
            data = os.read(self._from, _READ_BYTES)
        except BlockingIOError:
            return 0
        self.ended = self.ended or not data
        self._received += data
        return len(data)

    def _frames(self) -> list[memoryview]:
        bodies, at, received = [], 0, self._received
        while len(received) - at >= LENGTH.size:
            end = at + LENGTH.size + LENGTH.unpack_from(received, at)[0]
            if end > len(received):
                break
            bodies.append(memoryview(bytes(received[at + LENGTH.size : end])))
            self._unanswered -= received[at + LENGTH.size] in ANSWERS
            at = end
        del received[:at]
        return bodies

    def last_frames(self) -> list[memoryview]:
        """What a child that has ended had still said."""
        while self._receive():
            pass
        return self._frames()

    def clock(self) -> tuple[str, float]:
        """Its state as the kernel calls it (R, S, D, T, Z) and the seconds of CPU it has used. Z when it is gone."""
        return children.cpu_time_of(str(self.pid))

    def close(self) -> bool:
        """End it, if it has not ended. True when somebody outside had killed it."""
        code = self._process.poll()
        if code is None and self.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipes close a moment before it is gone
                code = self._process.wait(_END_SECONDS)
        if code is None:
            self._process.kill()
            self._process.wait()
        for stream in self._streams:
            stream.close()
        return code is not None and -code in children.KILLED_FROM_OUTSIDE


def _no_start(why: str) -> FailedError:
    return FailedError(f"the decoder's process cannot start: {why}", "check the installation and the memory limit")
