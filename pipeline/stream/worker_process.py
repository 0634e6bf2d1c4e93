"""A rank's side of one loader process: its start, its requests, its answers, signs of its life, and its end."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import socket
import subprocess
import tempfile

from pipeline.base import children
from pipeline.base.errors import FailedError
from pipeline.stream.batch import BatchArrays, copied
from pipeline.stream.worker_child import WorkerSettings
from pipeline.stream.worker_page import Silence, StatusPage
from pipeline.stream.worker_words import REQUEST, Word, words_in

TICK_SECONDS = 0.1
_PROGRAM = "pipeline.stream.worker_child"
_STOPPED_SECONDS = 4.0  # a stopped process does not go on by itself: no need to wait for long
_START_SECONDS = 60.0  # to read and run the imports
_READ_BYTES = 1 << 18
_END_SECONDS = 5.0


class SharedSettings:
    """What loader processes are told, in memory that each of them reads: it may be larger than a socket holds."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.descriptor = os.memfd_create("vitpipe-loader-settings")
        with os.fdopen(self.descriptor, "wb", closefd=False) as file:
            file.write(pickle.dumps(settings))

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.descriptor)


class WorkerProcess:
    """A running loader process. Raises FailedError when it cannot be started."""

    def __init__(self, shared: SharedSettings) -> None:
        self._layout = shared.settings.layout
        self._stall_seconds = shared.settings.plan.recipe.stall_seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        memory = os.memfd_create("vitpipe-loader-batches")
        ours, theirs = socket.socketpair()
        try:
            os.ftruncate(memory, self._layout.num_bytes)
            self._memory = mmap.mmap(memory, self._layout.num_bytes)
            inherited = [theirs.fileno(), memory, shared.descriptor]
            self._process = children.start(
                _PROGRAM,
                [str(number) for number in (os.getpid(), *inherited)],
                errors=self._errors,
                pass_fds=inherited,
            )
        except OSError as error:
            ours.close()
            self._errors.close()
            raise FailedError(f"a loader process cannot start: {error}", "check the limits of this machine") from None
        finally:
            os.close(memory)
            theirs.close()
        self.pid = self._process.pid
        ours.setblocking(False)
        self._socket = ours
        self._unsent, self._received = bytearray(), bytearray()
        self._page = StatusPage(self._memory)
        self._silence = Silence(str(self.pid), TICK_SECONDS)
        self.ended = False

    def fileno(self) -> int:
        """To be polled for answers."""
        return self._socket.fileno()

    def ask(self, step: int, slot: int) -> None:
        """Have batch *step* built in *slot*."""
        self._unsent += REQUEST.pack(step, slot)
        self._send()

    def words(self) -> list[Word]:
        """What it has said since the last call. ``ended`` is True when that is its last."""
        self._send()
        while not self.ended:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            self.ended = not data
            self._received += data
        return list(words_in(self._received))

    def batch(self, slot: int) -> BatchArrays:
        """A copy of what it has built in *slot*."""
        return copied(self._layout.slot(self._memory, slot))

    def tick(self) -> str:
        """A tick in which it had work and said nothing: why it has to be replaced, or "" when it has not."""
        self._silence.tick(self._page.beats)
        if self._silence.stopped_seconds >= min(_STOPPED_SECONDS, self._stall_seconds):
            return f"was stopped for {self._silence.stopped_seconds:.0f} s"
        if self._silence.seconds >= (self._stall_seconds if self._page.beats else _START_SECONDS):
            return f"showed no life for {self._silence.seconds:.0f} s"
        return "was stuck" if self._page.stuck else ""

    @property
    def doing(self) -> str:
        """What it is doing, or was when it ended."""
        return self._page.doing

    @property
    def waits(self) -> bool:
        """Whether it waits for a store that does not answer."""
        return self._page.waits

    def end(self) -> tuple[bool, str]:
        """End it, if it has not ended. Whether it was killed from outside, and how it had ended, or its last words."""
        code = self._process.poll()
        if code is None and self.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its socket closes a moment before it is gone
                code = self._process.wait(_END_SECONDS)
        self.kill()
        outside = code is not None and -code in children.KILLED_FROM_OUTSIDE
        words = f"signal {-code}" if code and code < 0 else children.last_words(self._errors, self._process)
        return outside, words

    def kill(self) -> None:
        """End it at once. Its memory stays for those who still read it."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in a disk is left to the kernel
            self._process.wait(_END_SECONDS)

    def close(self) -> None:
        """End it and let go of all that belongs to it."""
        self.kill()
        self._socket.close()
        self._errors.close()
        self._page.release()
        with contextlib.suppress(BufferError):  # an array over it is still in use: it goes with that
            self._memory.close()

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent and not self.ended:
                try:
                    sent = self._socket.send(self._unsent)
                except ConnectionError:
                    self.ended = True
                    return
                del self._unsent[:sent]
