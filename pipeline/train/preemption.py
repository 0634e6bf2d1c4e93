"""The request to stop a rank: by SIGTERM, or from the driver."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPT, RELOCATE = 2.0, 1.0  # strengths: the larger one wins when ranks have different reasons to stop
RELOCATING = "relocate"  # the driver's reason: the ranks are to begin again elsewhere or in another number
SIGTERM = "SIGTERM"

_listening: list[StopSignal] = []  # those of this process that a SIGTERM reaches
_previous: list[object] = []  # the handler of SIGTERM before ours, once ours is installed


class StopSignal:
    """The first request, and when it came. *grace_seconds*: how long whoever stops us waits before it kills."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._reason, self._requested_at = "", 0.0
        self._lock = threading.Lock()

    def request(self, reason: str) -> None:
        """Ask that this process stops, for *reason*. May be called by any thread."""
        with self._lock:
            if not self._reason or self._reason == RELOCATING:
                self._reason, self._requested_at = reason, time.monotonic()

    @property
    def strength(self) -> float:
        """0: go on; RELOCATE or INTERRUPT."""
        if not self._reason:
            return 0.0
        return RELOCATE if self._reason == RELOCATING else INTERRUPT

    @property
    def seconds_left(self) -> float:
        """Of the grace period; all of it without a request."""
        return max(0.0, self._grace - (time.monotonic() - self._requested_at)) if self._reason else self._grace


def install_sigterm_handler() -> None:
    """From now on SIGTERM reaches every StopSignal that listens; without one it does what it did before.

    To be called in the main thread, which in Ray's workers is not the one that trains.
    """
    if not _previous:
        _previous.append(signal.signal(signal.SIGTERM, _on_sigterm))


@contextmanager
def listening(stop: StopSignal) -> Iterator[None]:
    """Inside, SIGTERM reaches *stop*, where ``install_sigterm_handler`` was called or can be."""
    if threading.current_thread() is threading.main_thread():
        install_sigterm_handler()
    _listening.append(stop)
    try:
        yield
    finally:
        _listening.remove(stop)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _listening:
        for stop in _listening:
            stop.request(SIGTERM)
        return
    before: Callable[[int, FrameType | None], object] | int | None = _previous[0]  # type: ignore[assignment]
    if callable(before):
        before(number, frame)
    elif before != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
