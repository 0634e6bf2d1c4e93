"""The pulse of a rank: a thread that tells the driver twice a second where the rank is, and does what it answers.

One line of JSON at a time, over TCP. To the driver: who the rank is, then step, phase, since when, and whether its
thread of training waits in a collective; texts for people. From it: a wish to stop, or the end: one rank is stopped or
stuck, so those on its host kill it and all others end at once, for a restart of all (supervise.py judges).
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

from pipeline.base.process_identity import kill, whoami
from pipeline.base.world import World

_log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
STARTING, FIRST_STEP, DATA, STEP, SAVING, ENDING = (
    "starting",
    "first step",
    "waiting for data",
    "step",
    "saving",
    "ending",
)
END_CODE = 75  # EX_TEMPFAIL of sysexits.h: a rank that ended itself so that all are restarted
_LAST_WORDS_SECONDS = 3.0
_LOOK_SECONDS = 2.0  # in a phase for so long: look where the thread of training is
_CONNECT_SECONDS = 2.0
# Files whose innermost frame means: waits for other ranks. DeepSpeed waits on handles in its own code.
_COLLECTIVES = ("/torch/distributed/", "/deepspeed/", "/pipeline/train/agree.py", "/pipeline/train/collective.py")


class RankHeartbeat:
    """Of the rank whose thread of training makes this. Without an *address* it only keeps what it is told.

    *on_stop* hears why somebody wants the run to stop; *on_end* has 3 s for last words before the process ends.
    """

    def __init__(
        self,
        address: str,
        world: World,
        group: str,
        on_stop: Callable[[str], None] = lambda _: None,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._hello = {"group": group, "rank": world.rank, "world": world.size, **whoami()}
        self._on_stop, self._on_end = on_stop, on_end
        self._trained = threading.get_ident()
        self._place: tuple[str, int, float] = (STARTING, 0, time.monotonic())
        self._longest = 0.0
        self._looked: tuple[object, object, bool] = (None, None, True)
        self._said: deque[str] = deque()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._live, args=(address,), name="pulse", daemon=True)
        if address:
            self._thread.start()

    def mark(self, phase: str, step: int) -> None:
        """The thread of training is in *phase* of *step* from now on; costs a microsecond."""
        before, _, since = self._place
        now = time.monotonic()
        if before == STEP:
            self._longest = max(self._longest, now - since)
        self._place = (phase, step, now)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside, the thread of training is in *phase* of its step; afterwards in the one it was in."""
        before, step, _ = self._place
        self.mark(phase, step)
        try:
            yield
        finally:
            self.mark(before, step)

    def say(self, text: str) -> None:
        """Show *text* to whoever watches the driver."""
        self._said.append(text)

    def close(self) -> None:
        """Leave in peace: the process may end now without being missed."""
        self._leaving.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _live(self, address: str) -> None:
        where, _, token = address.rpartition("/")
        host, _, port = where.rpartition(":")
        while not self._leaving.is_set():
            try:
                with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS) as line:
                    self._beat(line, token)
            except OSError as error:
                _log.debug("no driver at %s: %s", where, error)
                self._leaving.wait(_CONNECT_SECONDS)

    def _beat(self, line: socket.socket, token: str) -> None:
        """Until the line breaks, or this rank leaves."""
        send(line, {"token": token, **self._hello})
        heard = b""
        while True:
            leaving = self._leaving.is_set()
            send(line, self._state() | ({"bye": True} if leaving else {}))
            if leaving:
                return
            until = time.monotonic() + BEAT_SECONDS
            while (left := until - time.monotonic()) > 0 and not self._leaving.is_set():
                if not select.select([line], [], [], min(left, 0.1))[0]:
                    continue
                data = line.recv(65536)
                if not data:
                    raise OSError("closed")
                *messages, heard = (heard + data).split(b"\n")
                for message in messages:
                    self._obey(json.loads(message))

    def _state(self) -> dict[str, Any]:
        marked = phase, step, since = self._place
        seconds = time.monotonic() - since
        waits, place, still = (False, "", False) if seconds < _LOOK_SECONDS else self._look(marked)
        said = [self._said.popleft() for _ in range(len(self._said))]
        return {
            "phase": phase,
            "step": step,
            "seconds": seconds,
            "longest": self._longest,
            "waits": waits,
            "place": place,
            "still": still,
            "said": said,
        }

    def _look(self, marked: tuple[str, int, float]) -> tuple[bool, str, bool]:
        """(whether the thread of training waits in a collective, where it is, and at all looks was since *marked*)."""
        frame = sys._current_frames().get(self._trained)
        if frame is None:
            return False, "", False
        file, line = frame.f_code.co_filename, frame.f_lineno
        before, place, still = self._looked
        still = before != marked or (still and place == (file, line))
        self._looked = (marked, (file, line), still)
        told = f"{Path(file).name}:{line} {frame.f_code.co_name}"
        return any(part in file for part in _COLLECTIVES), told, still

    def _obey(self, message: dict[str, Any]) -> None:
        if "stop" in message:
            self._on_stop(message["stop"])
        if "end" in message:
            for culprit in message["kill"]:
                kill(culprit)
            words = threading.Thread(target=self._on_end, args=(message["end"],), daemon=True)
            words.start()
            words.join(timeout=_LAST_WORDS_SECONDS)
            os._exit(END_CODE)


def send(line: socket.socket, message: dict[str, Any]) -> None:
    """One line of JSON. Raises OSError."""
    line.sendall(json.dumps(message).encode() + b"\n")
