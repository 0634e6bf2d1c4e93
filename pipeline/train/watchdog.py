"""The driver's side of the heartbeat: listens to every rank, finds those that hang, and ends all when one cannot go on.

It lives in the driver, not in a rank, so that it finds rank 0 as well, reports to whoever watches the driver, and takes
no time from training. A rank that cannot reach it trains on, unsupervised.

``diagnose_hang`` is a pure rule over what every rank last reported. Times are seconds. A rank is *silent* when nothing
came from it, *stuck* when it reports but does not move while all others wait for it inside a collective. Waiting for
data, saving and the first step (which may compile) are not stuck. A rank that was at one and the same line at every
look has two of the longest steps so far, one that moves twenty: it may be slow. So in steps of up to 4 s, and 0.4 s,
both are found within 10 s; in longer ones later.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.child_process import cpu_time_of
from pipeline.base.process_identity import ProcessIdentity
from pipeline.train.heartbeat import DATA, STARTING, STEP, send
from pipeline.train.preemption import RELOCATING, SIGTERM

_log = logging.getLogger(__name__)

STOPPED_SECONDS = 3.0  # silent, and the kernel says that it is stopped
SILENT_SECONDS = 7.0  # silent, and nothing is known of its process: it and a round stay below 10 s
BUSY_SECONDS = 30.0  # silent, but its process runs: something holds the interpreter, or the machine is overloaded
STUCK_SECONDS = 8.0  # it, half a second to arrive and a round stay below 10 s
STILL_STEPS, MOVING_STEPS = 2.0, 20.0  # or so many of the longest step so far, when these take longer
ALL_WAIT_SECONDS, ALL_WAIT_STEPS = 60.0, 120.0  # every rank waits for others: nobody is to blame, but nothing will come
_STOPPED_STATES, _GONE_STATES = {"T", "t"}, {"Z", "X"}  # of a process, as the kernel names them
_ROUND_SECONDS = 0.5  # between two diagnoses
_AWAY_SECONDS = 2.0  # a driver that did not run for so long cannot say how long ranks were silent
_GREETING_SECONDS = 10.0  # after which a connection without a greeting is dropped
_MAX_LINE = 1 << 20  # bytes of a message
_NO_REPORT: dict[str, Any] = {
    "step": 0,
    "phase": STARTING,
    "seconds": 0.0,
    "waits": False,
    "longest": 0.0,
    "place": "",
    "still": False,
}


@dataclass(frozen=True)
class RankStatus:
    """What a rank last reported. *state*: of its process, as the kernel names it; "" on another machine.

    *location*: the line of its thread of training; *still*: it was there at every look since the phase began.
    """

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    phase_seconds: float
    waits: bool
    longest_seconds: float
    silent_seconds: float
    state: str = ""
    location: str = ""
    still: bool = False

    def __str__(self) -> str:
        location = f", at {self.location}" if self.location else ""
        return f"rank {self.rank} (host {self.host}, pid {self.pid}, step {self.step}, {self.phase}{location})"


@dataclass(frozen=True)
class HangVerdict:
    """Training cannot go on; *culprits* are to be killed, the other ranks end themselves."""

    culprits: tuple[RankStatus, ...]
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.culprits))}: {self.reason}" if self.culprits else self.reason


def diagnose_hang(ranks: Sequence[RankStatus], world_size: int) -> HangVerdict | None:
    """The verdict over *ranks*, of which there may be fewer than *world_size* while they start; None: all is well."""
    longest = max((rank.longest_seconds for rank in ranks), default=0.0)
    silent = [rank for rank in ranks if rank.silent_seconds > _silence_limit(rank, ranks, world_size)]
    if silent:
        return HangVerdict(tuple(silent), f"{_why_silent(silent[0])} for {silent[0].silent_seconds:.0f} s")
    if len(ranks) < world_size or world_size == 1:
        return None
    if any(rank.phase != STEP for rank in ranks):
        return None
    waited = min(rank.phase_seconds for rank in ranks)
    stuck = [rank for rank in ranks if not rank.waits]
    if not stuck and waited > max(ALL_WAIT_SECONDS, ALL_WAIT_STEPS * longest):
        return HangVerdict((), f"every rank has waited for the others for {waited:.0f} s in step {ranks[0].step}")
    steps = STILL_STEPS if all(rank.still for rank in stuck) else MOVING_STEPS
    if stuck and len(stuck) < len(ranks) and waited > max(STUCK_SECONDS, steps * longest):
        return HangVerdict(tuple(stuck), f"stuck for {waited:.0f} s while the others wait for it")
    return None


def _silence_limit(rank: RankStatus, ranks: Sequence[RankStatus], world_size: int) -> float:
    """Seconds of silence. One that runs may be short of time on its machine, unless all others have waited so long."""
    if rank.state in _STOPPED_STATES | _GONE_STATES:
        return STOPPED_SECONDS
    if not rank.state:
        return SILENT_SECONDS
    others = [status for status in ranks if status is not rank]
    if rank.phase not in (DATA, STEP) or not others or len(ranks) < world_size:
        return BUSY_SECONDS
    limit = max(STUCK_SECONDS, STILL_STEPS * max(status.longest_seconds for status in ranks))
    if any(status.phase != STEP or not status.waits or status.phase_seconds < limit for status in others):
        return BUSY_SECONDS
    return min(BUSY_SECONDS, limit)


def _why_silent(rank: RankStatus) -> str:
    if rank.state in _STOPPED_STATES:
        return "stopped (SIGSTOP)"
    return "gone" if rank.state in _GONE_STATES else "not heard of"


@dataclass
class _Connection:
    """Of one rank. *hello*: its first message, with its identity, empty before that has come; *report*: its last one;
    *rest*: the bytes so far of its next one.
    """

    socket: socket.socket
    opened: float
    hello: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    received: float = 0.0
    rest: bytes = b""


class Watchdog:
    """Listens at ``address`` from the beginning to ``close``.

    *on_message* gets (attempt, message for people); attempt is "" for a message that is of none.
    """

    def __init__(self, host: str = "127.0.0.1", on_message: Callable[[str, str], None] = lambda *_: None) -> None:
        self._token = secrets.token_hex(16)
        self._server = socket.create_server((host, 0))
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._on_message, self._own = on_message, ProcessIdentity.current()
        self._connections: dict[socket.socket, _Connection] = {}
        self._ended: set[str] = set()
        self._stopping = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.verdicts: list[HangVerdict] = []
        self.address = f"{host}:{self._server.getsockname()[1]}/{self._token}"
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> str:
        """The reason of the request to stop; "" when there was none."""
        return self._stopping

    def stop(self, reason: str) -> None:
        """Request that all ranks, also those that come later, save and stop at their next step."""
        with self._lock:
            if self._stopping == SIGTERM:
                return  # the stronger reason
            self._stopping = reason
            for connection in self._connections.values():
                if connection.hello:
                    _try_send(connection.socket, {"stop": reason})

    def go_on(self) -> bool:
        """Whether the ranks stopped to begin anew: those that come from now on need not stop."""
        with self._lock:
            is_to_begin = self._stopping == RELOCATING
            if is_to_begin:
                self._stopping = ""
        return is_to_begin

    @property
    def num_ranks(self) -> int:
        """How many ranks are connected now."""
        with self._lock:
            return sum(1 for connection in self._connections.values() if connection.hello)

    def message(self, text: str) -> None:
        """Show *text*, which is of no attempt."""
        self._on_message("", text)

    def close(self) -> None:
        """Listen no longer."""
        self._closed.set()
        self._thread.join()
        for connection in list(self._connections.values()):
            connection.socket.close()
        self._server.close()
        self._selector.close()

    def _work(self) -> None:
        last = time.monotonic()
        while not self._closed.is_set():
            for key, _ in self._selector.select(_ROUND_SECONDS):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._receive(self._connections[key.fileobj])  # type: ignore[index]
            now = time.monotonic()
            if now - last > _AWAY_SECONDS:
                for connection in self._connections.values():
                    connection.received = now
            last = now
            try:
                self._diagnose(now)
            except Exception:
                _log.exception("the supervisor of the ranks could not judge")

    def _accept(self) -> None:
        try:
            channel, _ = self._server.accept()
        except OSError:
            return
        channel.settimeout(1.0)
        with self._lock:
            self._connections[channel] = _Connection(channel, time.monotonic())
        self._selector.register(channel, selectors.EVENT_READ)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        *messages, connection.rest = (connection.rest + data).split(b"\n")
        try:
            for message in messages:
                self._take(connection, json.loads(message))
        except (ValueError, KeyError, TypeError):
            self._drop(connection)  # not a rank of ours
        if len(connection.rest) > _MAX_LINE:
            self._drop(connection)

    def _take(self, connection: _Connection, message: dict[str, Any]) -> None:
        connection.received = time.monotonic()
        if not connection.hello:
            if not hmac.compare_digest(str(message.pop("token")), self._token):
                raise ValueError("wrong token")
            connection.hello = message
            if self._stopping:
                _try_send(connection.socket, {"stop": self._stopping})
            return
        for text in message.pop("said"):
            self._on_message(connection.hello["group"], text)
        connection.report = message
        if message.get("bye"):
            self._drop(connection)

    def _lost(self, connection: _Connection) -> None:
        """The connection broke without a goodbye: the process died."""
        self._drop(connection)
        if connection.hello and connection.hello["group"] not in self._ended and not self._closed.is_set():
            self._end(connection.hello["group"], HangVerdict((_status_of(connection, 0.0, ""),), "died"), [])

    def _drop(self, connection: _Connection) -> None:
        with self._lock:
            if self._connections.pop(connection.socket, None) is None:
                return
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _diagnose(self, now: float) -> None:
        for connection in list(self._connections.values()):
            if not connection.hello and now - connection.opened > _GREETING_SECONDS:
                self._drop(connection)
        groups: dict[str, list[_Connection]] = {}
        for connection in self._connections.values():
            if connection.report and connection.hello["group"] not in self._ended:
                groups.setdefault(connection.hello["group"], []).append(connection)
        for group, connections in groups.items():
            ranks = [_status_of(rank, now - rank.received, self._look(rank)) for rank in connections]
            verdict = diagnose_hang(ranks, connections[0].hello["world"])
            if verdict:
                culprits = {culprit.rank for culprit in verdict.culprits}
                processes = [rank.hello for rank in connections if rank.hello["rank"] in culprits]
                self._end(group, verdict, processes)

    def _look(self, connection: _Connection) -> str:
        process = ProcessIdentity.from_message(connection.hello)
        return cpu_time_of(str(process.pid))[0] if process.same_machine(self._own) else ""

    def _end(self, group: str, verdict: HangVerdict, culprits: list[dict[str, Any]]) -> None:
        self._ended.add(group)
        self.verdicts.append(verdict)
        for culprit in culprits:
            ProcessIdentity.from_message(culprit).kill()
        message = {"end": str(verdict), "kill": culprits}
        with self._lock:
            ranks = [rank for rank in self._connections.values() if rank.hello and rank.hello["group"] == group]
        for rank in ranks:
            if rank.hello not in culprits:
                _try_send(rank.socket, message)
        self._on_message(group, f"{verdict}; all ranks are restarted")


def _try_send(channel: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # a rank that does not listen is found in the next round
        send(channel, message)


def _status_of(connection: _Connection, silent: float, state: str) -> RankStatus:
    report = connection.report or _NO_REPORT
    return RankStatus(
        rank=connection.hello["rank"],
        host=connection.hello["host"],
        pid=connection.hello["pid"],
        step=report["step"],
        phase=report["phase"],
        phase_seconds=report["seconds"],
        waits=report["waits"],
        longest_seconds=report["longest"],
        silent_seconds=silent,
        state=state,
        location=report["place"],
        still=report["still"],
    )
