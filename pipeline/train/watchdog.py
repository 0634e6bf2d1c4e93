"""The driver's side of the heartbeat: listens to the pulse of every rank, judges, and ends all when one cannot go on.

It lives in the driver, not in a rank, so that it finds rank 0 as well, says what it found where a person looks, and
takes no time from training. A rank that cannot reach it trains on, unsupervised.
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
from pipeline.base.process_identity import kill, whoami
from pipeline.train.heartbeat import DATA, STARTING, STEP, send
from pipeline.train.preemption import RELOCATING, SIGTERM

_log = logging.getLogger(__name__)

STOPPED_SECONDS = 3.0  # silent, and the kernel says that it is stopped
SILENT_SECONDS = 7.0  # silent, and nothing is known of its process: it and the round of judging stay below 10 s
BUSY_SECONDS = 30.0  # silent, but its process runs: something holds the interpreter, or the machine is overloaded
STUCK_SECONDS = 8.0  # it, half a second to be heard and one for a round of judging stay below 10 s
STILL_STEPS, MOVING_STEPS = 2.0, 20.0  # or so many of the longest step so far, when these take longer
ALL_WAIT_SECONDS, ALL_WAIT_STEPS = 60.0, 120.0  # every rank waits for others: nobody is to blame, but nothing will come
_STOPPED_STATES, _GONE_STATES = {"T", "t"}, {"Z", "X"}


@dataclass(frozen=True)
class RankStatus:
    """A rank as it was last heard. *state* is its process's state as the kernel says it, "" where nobody can look.

    *still*: whenever somebody looked in this phase, its thread of training was at *place*.
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
    place: str = ""
    still: bool = False

    def __str__(self) -> str:
        place = f", at {self.place}" if self.place else ""
        return f"rank {self.rank} (host {self.host}, pid {self.pid}, step {self.step}, {self.phase}{place})"


@dataclass(frozen=True)
class HangVerdict:
    """Training cannot go on; *culprits* are to be killed, the other ranks end themselves."""

    culprits: tuple[RankStatus, ...]
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.culprits))}: {self.reason}" if self.culprits else self.reason


def diagnose_hang(ranks: Sequence[RankStatus], world_size: int) -> HangVerdict | None:
    """The verdict over *ranks*, of which there may be fewer than *world_size* while they start; None: all is well."""
    longest = max((seen.longest_seconds for seen in ranks), default=0.0)
    silent = [seen for seen in ranks if seen.silent_seconds > _patience(seen, ranks, world_size)]
    if silent:
        return HangVerdict(tuple(silent), f"{_why_silent(silent[0])} for {silent[0].silent_seconds:.0f} s")
    if len(ranks) < world_size or world_size == 1:
        return None
    if any(seen.phase != STEP for seen in ranks):
        return None
    held = min(seen.phase_seconds for seen in ranks)
    stuck = [seen for seen in ranks if not seen.waits]
    if not stuck and held > max(ALL_WAIT_SECONDS, ALL_WAIT_STEPS * longest):
        return HangVerdict((), f"every rank has waited for the others for {held:.0f} s in step {ranks[0].step}")
    steps = STILL_STEPS if all(seen.still for seen in stuck) else MOVING_STEPS
    if stuck and len(stuck) < len(ranks) and held > max(STUCK_SECONDS, steps * longest):
        return HangVerdict(tuple(stuck), f"stuck for {held:.0f} s while the others wait for it")
    return None


def _patience(seen: RankStatus, ranks: Sequence[RankStatus], world_size: int) -> float:
    """Seconds of silence. One that runs may be short of time on its machine, unless all others have waited so long."""
    if seen.state in _STOPPED_STATES | _GONE_STATES:
        return STOPPED_SECONDS
    if not seen.state:
        return SILENT_SECONDS
    others = [other for other in ranks if other is not seen]
    if seen.phase not in (DATA, STEP) or not others or len(ranks) < world_size:
        return BUSY_SECONDS
    limit = max(STUCK_SECONDS, STILL_STEPS * max(one.longest_seconds for one in ranks))
    if any(other.phase != STEP or not other.waits or other.phase_seconds < limit for other in others):
        return BUSY_SECONDS
    return min(BUSY_SECONDS, limit)


def _why_silent(seen: RankStatus) -> str:
    if seen.state in _STOPPED_STATES:
        return "stopped (SIGSTOP)"
    return "gone" if seen.state in _GONE_STATES else "not heard of"


_ROUND_SECONDS = 0.5
_AWAY_SECONDS = 2.0  # who was not there for so long cannot say how long others were silent
_GREETING_SECONDS = 10.0
_MAX_LINE = 1 << 20
_SAID_NOTHING: dict[str, Any] = {
    "step": 0,
    "phase": STARTING,
    "seconds": 0.0,
    "waits": False,
    "longest": 0.0,
    "place": "",
    "still": False,
}


@dataclass
class _Line:
    """One connection."""

    socket: socket.socket
    opened: float
    hello: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    heard: float = 0.0
    rest: bytes = b""


class Watchdog:
    """Listens at ``address`` from the beginning to ``close``. *say* hears what people should know, with the attempt."""

    def __init__(self, host: str = "127.0.0.1", say: Callable[[str, str], None] = lambda *_: None) -> None:
        self._token = secrets.token_hex(16)
        self._server = socket.create_server((host, 0))
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._say, self._me = say, whoami()
        self._lines: dict[socket.socket, _Line] = {}
        self._ended: set[str] = set()
        self._stopping = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.verdicts: list[HangVerdict] = []
        self.address = f"{host}:{self._server.getsockname()[1]}/{self._token}"
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> str:
        """Why the ranks were asked to stop; "" when they were not."""
        return self._stopping

    def stop(self, reason: str) -> None:
        """Ask all ranks, also those that come later, to save and stop at their next step."""
        with self._lock:
            if self._stopping == SIGTERM:
                return  # the stronger wish
            self._stopping = reason
            for line in self._lines.values():
                if line.hello:
                    _try_send(line.socket, {"stop": reason})

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
            return sum(1 for line in self._lines.values() if line.hello)

    def tell(self, text: str) -> None:
        """Say *text*, which is of no attempt."""
        self._say("", text)

    def close(self) -> None:
        """Hear nobody any more."""
        self._closed.set()
        self._thread.join()
        for line in list(self._lines.values()):
            line.socket.close()
        self._server.close()
        self._selector.close()

    def _work(self) -> None:
        last = time.monotonic()
        while not self._closed.is_set():
            for key, _ in self._selector.select(_ROUND_SECONDS):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._hear(self._lines[key.fileobj])  # type: ignore[index]
            now = time.monotonic()
            if now - last > _AWAY_SECONDS:
                for line in self._lines.values():
                    line.heard = now
            last = now
            try:
                self._judge(now)
            except Exception:
                _log.exception("the supervisor of the ranks could not judge")

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        connection.settimeout(1.0)
        with self._lock:
            self._lines[connection] = _Line(connection, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, line: _Line) -> None:
        try:
            data = line.socket.recv(65536)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(line)
            return
        *messages, line.rest = (line.rest + data).split(b"\n")
        try:
            for message in messages:
                self._take(line, json.loads(message))
        except (ValueError, KeyError, TypeError):
            self._drop(line)  # not one of ours
        if len(line.rest) > _MAX_LINE:
            self._drop(line)

    def _take(self, line: _Line, message: dict[str, Any]) -> None:
        line.heard = time.monotonic()
        if not line.hello:
            if not hmac.compare_digest(str(message.pop("token")), self._token):
                raise ValueError("wrong token")
            line.hello = message
            if self._stopping:
                _try_send(line.socket, {"stop": self._stopping})
            return
        for text in message.pop("said"):
            self._say(line.hello["group"], text)
        line.state = message
        if message.get("bye"):
            self._drop(line)

    def _lost(self, line: _Line) -> None:
        """The line broke without a goodbye: the process died."""
        self._drop(line)
        if line.hello and line.hello["group"] not in self._ended and not self._closed.is_set():
            self._end(line.hello["group"], HangVerdict((_seen(line, 0.0, ""),), "died"), [])

    def _drop(self, line: _Line) -> None:
        with self._lock:
            if self._lines.pop(line.socket, None) is None:
                return
        self._selector.unregister(line.socket)
        line.socket.close()

    def _judge(self, now: float) -> None:
        for line in list(self._lines.values()):
            if not line.hello and now - line.opened > _GREETING_SECONDS:
                self._drop(line)
        groups: dict[str, list[_Line]] = {}
        for line in self._lines.values():
            if line.state and line.hello["group"] not in self._ended:
                groups.setdefault(line.hello["group"], []).append(line)
        for group, lines in groups.items():
            seen = [_seen(line, now - line.heard, self._look(line)) for line in lines]
            verdict = diagnose_hang(seen, lines[0].hello["world"])
            if verdict:
                culprits = {one.rank for one in verdict.culprits}
                self._end(group, verdict, [line.hello for line in lines if line.hello["rank"] in culprits])

    def _look(self, line: _Line) -> str:
        return cpu_time_of(str(line.hello["pid"]))[0] if line.hello["machine"] == self._me["machine"] else ""

    def _end(self, group: str, verdict: HangVerdict, culprits: list[dict[str, Any]]) -> None:
        self._ended.add(group)
        self.verdicts.append(verdict)
        for culprit in culprits:
            kill(culprit)
        message = {"end": str(verdict), "kill": culprits}
        with self._lock:
            lines = [line for line in self._lines.values() if line.hello and line.hello["group"] == group]
        for line in lines:
            if line.hello not in culprits:
                _try_send(line.socket, message)
        self._say(group, f"{verdict}; all ranks are restarted")


def _try_send(line: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # who does not listen is found by the judge
        send(line, message)


def _seen(line: _Line, silent: float, state: str) -> RankStatus:
    said = line.state or _SAID_NOTHING
    return RankStatus(
        rank=line.hello["rank"],
        host=line.hello["host"],
        pid=line.hello["pid"],
        step=said["step"],
        phase=said["phase"],
        phase_seconds=said["seconds"],
        waits=said["waits"],
        longest_seconds=said["longest"],
        silent_seconds=silent,
        state=state,
        place=said["place"],
        still=said["still"],
    )
