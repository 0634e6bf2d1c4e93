"""The program of a loader process: builds the batches that its rank asks for, in memory that both share. No torch.

``python -P -m pipeline.stream.loader_worker PARENT SOCKET MEMORY SETTINGS``, the last three being file descriptors.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable

from pipeline.base.child_process import end_with_parent
from pipeline.base.errors import FailedError, VitpipeError
from pipeline.base.shared_memory import HeartbeatThread, StatusPage
from pipeline.stream.batch import BatchBuilder
from pipeline.stream.loader_messages import REQUEST, BatchDone, BatchFailed, LogLine, Message, WorkerSettings, pack_word

_BEAT_SECONDS = 0.25


def main() -> None:
    """Serve until the rank closes its end of the socket."""
    parent, channel, memory, settings = (int(argument) for argument in sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    data = os.pread(settings, os.fstat(settings).st_size, 0)  # not by seeking: the descriptor is shared
    told: WorkerSettings = pickle.loads(data)  # noqa: S301 - from the rank that started this process
    with socket.socket(fileno=channel) as connection, mmap.mmap(memory, 0) as shared:
        page = StatusPage(shared)
        HeartbeatThread(page, f"self/task/{threading.get_native_id()}", told.stuck_seconds, _BEAT_SECONDS).start()
        _Server(connection, shared, page, told).serve()
        os._exit(0)  # with the memory still in use by its arrays


class _Server:
    def __init__(
        self, connection: socket.socket, shared: mmap.mmap, page: StatusPage, settings: WorkerSettings
    ) -> None:
        self._connection, self._page = connection, page
        self._sending = threading.Lock()
        logging.getLogger("pipeline").addHandler(_ToRank(self._send))
        self._slots = [settings.layout.slot(shared, number) for number in range(settings.layout.num_slots)]
        for reader in settings.readers:
            reader.patience.tell = page.wait
        self._builder = BatchBuilder(settings.readers, settings.plan, page.tell)

    def serve(self) -> None:
        while len(request := self._receive()) == REQUEST.size:
            step, slot = REQUEST.unpack(request)
            self._page.tell(f"looking up batch {step}")
            self._send(self._answer(step, slot))
            self._page.rest()

    def _answer(self, step: int, slot: int) -> Message:
        try:
            return BatchDone(step, self._builder.build(step, self._slots[slot]))
        except VitpipeError as error:
            return BatchFailed(step, error)
        except Exception as error:
            logging.getLogger(__name__).debug("batch %d", step, exc_info=True)
            return BatchFailed(
                step, FailedError(f"batch {step}: {type(error).__name__}: {error}", "--debug shows more")
            )

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(REQUEST.size, socket.MSG_WAITALL)
        except ConnectionError:
            return b""

    def _send(self, word: Message) -> None:
        with self._sending:
            try:
                self._connection.sendall(pack_word(word))
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # nobody is there to hear it


class _ToRank(logging.Handler):
    """Warnings of the library, passed on to the rank."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        super().__init__(logging.WARNING)
        self._send_word = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send_word(LogLine(record.getMessage()))


if __name__ == "__main__":
    main()
