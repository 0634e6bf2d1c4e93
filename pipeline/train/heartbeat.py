"""The heartbeat of a rank: a thread that reports to the driver twice a second, and does what the driver asks.

One line of JSON at a time, over TCP. To the driver: who the rank is, then step, phase, since when, and whether its
thread of training waits in a collective; texts for people. From it: a request to stop, or the end: one rank is stopped
or stuck, so those on its host kill it and all others end at once, for a restart of all (watchdog.py decides).
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.world import World

_log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5  # between two messages to the driver
STARTING, FIRST_STEP, DATA, STEP, SAVING, ENDING = (
    "starting",
    "first step",
    "waiting for data",
    "step",
    "saving",
    "ending",
)
END_CODE = 75  # EX_TEMPFAIL of sysexits.h: a rank that ended itself so that all are restarted
_ON_END_SECONDS = 3.0
_LOOK_SECONDS = 2.0  # in a phase for so long: look where the thread of training is
_CONNECT_SECONDS = 2.0  # for a connection, and between two attempts
# Files whose innermost frame means: waits for other ranks. DeepSpeed waits on handles in its own code.
_COLLECTIVES = ("/torch/distributed/", "/deepspeed/", "/pipeline/train/distributed.py")


class RankHeartbeat:
    """Of the rank whose thread of training makes this. *address*: of the Watchdog; "": there is none to report to.

    *on_stop* gets the reason of a request to stop; *on_end* has 3 s, after which the process ends.
    """

    def __init__(
        self,
        address: str,
        world: World,
        group: str,
        on_stop: Callable[[str], None] = lambda _: None,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._hello = {
            "group": group,
            "rank": world.rank,
            "world": world.size,
            **ProcessIdentity.current().to_message(),
        }
        self._on_stop, self._on_end = on_stop, on_end
        self._training_thread = threading.get_ident()
        self._mark: tuple[str, int, float] = (STARTING, 0, time.monotonic())
        self._longest = 0.0
        self._last_look: tuple[object, object, bool] = (None, None, True)
        self._messages: deque[str] = deque()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address,), name="heartbeat", daemon=True)
        if address:
            self._thread.start()

    def mark(self, phase: str, step: int) -> None:
        """The thread of training is in *phase* of *step* from now on; costs a microsecond."""
        before, _, since = self._mark
        now = time.monotonic()
        if before == STEP:
            self._longest = max(self._longest, now - since)
        self._mark = (phase, step, now)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside, the thread of training is in *phase* of its step; afterwards in the one it was in."""
        before, step, _ = self._mark
        self.mark(phase, step)
        try:
            yield
        finally:
            self.mark(before, step)

    def message(self, text: str) -> None:
        """Show *text* to whoever watches the driver."""
        self._messages.append(text)

    def close(self) -> None:
        """Say goodbye: the process may end now without being missed."""
        self._leaving.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self, address: str) -> None:
        driver, _, token = address.rpartition("/")
        host, _, port = driver.rpartition(":")
        while not self._leaving.is_set():
            try:
                with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS) as connection:
                    self._beat(connection, token)
            except OSError as error:
                _log.debug("no driver at %s: %s", driver, error)
                self._leaving.wait(_CONNECT_SECONDS)

    def _beat(self, connection: socket.socket, token: str) -> None:
        """Until the connection breaks, or this rank leaves."""
        send(connection, {"token": token, **self._hello})
        received = b""
        answers = select.poll()  # not select.select, which refuses descriptors above 1,023
        answers.register(connection, select.POLLIN)
        while True:
            leaving = self._leaving.is_set()
            send(connection, self._state() | ({"bye": True} if leaving else {}))
            if leaving:
                return
            until = time.monotonic() + BEAT_SECONDS
            while (left := until - time.monotonic()) > 0 and not self._leaving.is_set():
                if not answers.poll(min(left, 0.1) * 1000):
                    continue
                data = connection.recv(65536)
                if not data:
                    raise OSError("closed")
                *messages, received = (received + data).split(b"\n")
                for message in messages:
                    self._obey(json.loads(message))

    def _state(self) -> dict[str, Any]:
        mark = phase, step, since = self._mark
        seconds = time.monotonic() - since
        waits, location, still = (False, "", False) if seconds < _LOOK_SECONDS else self._look(mark)
        messages = [self._messages.popleft() for _ in range(len(self._messages))]
        return {
            "phase": phase,
            "step": step,
            "seconds": seconds,
            "longest": self._longest,
            "waits": waits,
            "place": location,
            "still": still,
            "said": messages,
        }

    def _look(self, mark: tuple[str, int, float]) -> tuple[bool, str, bool]:
        """Of the thread of training: (it waits in a collective, its line, it was there at every look since *mark*)."""
        frame = sys._current_frames().get(self._training_thread)
        if frame is None:
            return False, "", False
        file, line = frame.f_code.co_filename, frame.f_lineno
        mark_before, line_before, still = self._last_look
        still = mark_before != mark or (still and line_before == (file, line))
        self._last_look = (mark, (file, line), still)
        location = f"{Path(file).name}:{line} {frame.f_code.co_name}"
        return any(part in file for part in _COLLECTIVES), location, still

    def _obey(self, message: dict[str, Any]) -> None:
        if "stop" in message:
            self._on_stop(message["stop"])
        if "end" in message:
            for culprit in message["kill"]:
                ProcessIdentity.from_message(culprit).kill()
            last_call = threading.Thread(target=self._on_end, args=(message["end"],), daemon=True)
            last_call.start()
            last_call.join(timeout=_ON_END_SECONDS)
            os._exit(END_CODE)


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """One line of JSON. Raises OSError."""
    connection.sendall(json.dumps(message).encode() + b"\n")
