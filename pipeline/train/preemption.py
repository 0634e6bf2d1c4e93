"""The wish to stop, as a rank or a driver has heard it: by SIGTERM, or from the driver."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPT, RELOCATE = 2.0, 1.0  # the stronger one wins when ranks have heard different wishes
RELOCATING = "relocate"  # what the driver says when the ranks are to begin again elsewhere or in another number
SIGTERM = "SIGTERM"


class StopSignal:
    """Keeps the first wish, and when it came. *grace_seconds*: how long whoever stops us waits before it kills."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._reason, self._asked = "", 0.0
        self._lock = threading.Lock()

    def ask(self, reason: str) -> None:
        """Somebody wishes that this process stops, for *reason*. May be called by any thread."""
        with self._lock:
            if not self._reason or self._reason == RELOCATING:
                self._reason, self._asked = reason, time.monotonic()

    @property
    def strength(self) -> float:
        """0: go on; RELOCATE or INTERRUPT."""
        if not self._reason:
            return 0.0
        return RELOCATE if self._reason == RELOCATING else INTERRUPT

    @property
    def seconds_left(self) -> float:
        """Of the grace period; all of it when nobody has asked."""
        return max(0.0, self._grace - (time.monotonic() - self._asked)) if self._reason else self._grace


_wishes: list[StopSignal] = []
_previous: list[object] = []


def install_sigterm_handler() -> None:
    """From now on SIGTERM is a wish for every Stop of this process; without one it does what it did before.

    To be called in the main thread, which in Ray's workers is not the one that trains.
    """
    if not _previous:
        _previous.append(signal.signal(signal.SIGTERM, _heard))


@contextmanager
def listening(stop: StopSignal) -> Iterator[None]:
    """Inside, SIGTERM asks *stop*, where ``install_sigterm_handler`` was called or can be."""
    if threading.current_thread() is threading.main_thread():
        install_sigterm_handler()
    _wishes.append(stop)
    try:
        yield
    finally:
        _wishes.remove(stop)


def _heard(number: int, frame: FrameType | None) -> None:
    if _wishes:
        for stop in _wishes:
            stop.ask(SIGTERM)
        return
    before: Callable[[int, FrameType | None], object] | int | None = _previous[0]  # type: ignore[assignment]
    if callable(before):
        before(number, frame)
    elif before != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
