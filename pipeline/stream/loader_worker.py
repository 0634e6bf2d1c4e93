"""The program of a loader process: builds the batches that its rank requests, in memory that both share. No torch.

``python -P -m pipeline.stream.loader_worker PARENT SOCKET MEMORY SETTINGS``, the last three being file descriptors.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable

from pipeline.base.child_process import ChildChannel
from pipeline.base.errors import FailedError, VitpipeError
from pipeline.base.shared_memory import HeartbeatThread, SharedMemory, StatusPage
from pipeline.stream.batch import BatchBuilder
from pipeline.stream.loader_messages import (
    REQUEST,
    BatchDone,
    BatchFailed,
    LogLine,
    Message,
    WorkerSettings,
    pack_message,
    read_settings,
)

_BEAT_SECONDS = 0.25


def main() -> None:
    """Serve until the rank closes its end of the socket."""
    channel, arguments = ChildChannel.open(sys.argv)
    memory_descriptor, settings_descriptor = map(int, arguments)
    settings = read_settings(settings_descriptor)
    memory = SharedMemory.attach(memory_descriptor)
    page = StatusPage(memory)
    HeartbeatThread(page, f"self/task/{threading.get_native_id()}", settings.stuck_seconds, _BEAT_SECONDS).start()
    _Server(channel, memory, page, settings).serve()
    os._exit(0)  # with the memory still in use by its arrays


class _Server:
    def __init__(self, channel: ChildChannel, memory: mmap.mmap, page: StatusPage, settings: WorkerSettings) -> None:
        self._channel, self._page = channel, page
        logging.getLogger("pipeline").addHandler(_RankHandler(self._send))
        self._slots = [settings.layout.slot(memory, number) for number in range(settings.layout.num_slots)]
        for reader in settings.readers:
            reader.retry.on_message = page.wait
        self._builder = BatchBuilder(settings.readers, settings.plan, page.begin)

    def serve(self) -> None:
        while request := self._channel.receive_raw(REQUEST.size):
            step, slot = REQUEST.unpack(request)
            self._page.begin(f"looking up batch {step}")
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

    def _send(self, message: Message) -> None:
        self._channel.send(pack_message(message))


class _RankHandler(logging.Handler):
    """Passes warnings of the library on to the rank."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        super().__init__(logging.WARNING)
        self._send_message = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send_message(LogLine(record.getMessage()))


if __name__ == "__main__":
    main()
