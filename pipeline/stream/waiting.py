"""Waiting for a store that is away: with patience, and with a sign of life about every 5 s.

Requests run in threads of their own, because one that meets a dead server may take minutes to return; whoever waits
for it goes on telling that it waits.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, TypeVar

from pipeline.base.errors import DamageError, FailedError, InterruptedRunError, StoreAccessError
from pipeline.base.store import KeyRefusedError, Store
from pipeline.base.store.s3_errors import DeniedError, NoBucketError
from pipeline.stream.room import CacheError

TELL_SECONDS = 5.0
_DENIED_SECONDS = 30.0  # credentials are renewed within it; a longer denial is an answer
_STEP_SECONDS = 0.5  # how soon a stop is noticed
_FIRST_SECONDS, _LONGEST_SECONDS = 0.2, 10.0
_LASTING = (KeyRefusedError, NoBucketError, DamageError, CacheError)  # these do not pass

Result = TypeVar("Result")


def tell_nobody(text: str) -> None:
    """For those who do not listen."""


class Patience:
    """How long a store is waited for, who is told meanwhile, and what ends the waiting before.

    *tell* gets a line like "waiting for s3://bucket/datasets/a/shard-000012.tar for 40 s". *stopped*, when it is set,
    ends every waiting with InterruptedRunError.
    """

    def __init__(
        self,
        seconds: float = 600.0,
        tell: Callable[[str], None] = tell_nobody,
        stopped: threading.Event | None = None,
    ) -> None:
        self.seconds, self.tell, self.stopped = seconds, tell, stopped or threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Patience.__init__(self, **state)  # who is told, and what stops it, belong to a process

    def watch(self, what: str, alive: Callable[[], None] = lambda: None) -> Watch:
        """Begin to wait for *what*. *alive* is called with every line that is told."""
        return Watch(self, what, alive)


class Watch:
    """One waiting. Patience begins with it, and anew with each ``arrived``."""

    def __init__(self, patience: Patience, what: str, alive: Callable[[], None]) -> None:
        self._patience, self._what, self._alive = patience, what, alive
        self._begun = self._told = time.monotonic()
        self.arrived()

    def arrived(self) -> None:
        """Something came. May be called by another thread."""
        self._since = time.monotonic()
        self._alive()

    def do(self, request: Callable[[], Result], first: futures.Future[Result] | None = None) -> Result:
        """What *request* gives; *first* is its first try, begun before. Raises its last error when patience ends."""
        longest, attempt = _FIRST_SECONDS, first or in_background(request)
        while True:
            try:
                result = self._of(attempt)
                self.arrived()
                return result
            except _LASTING:
                raise
            except (FailedError, StoreAccessError) as error:
                left = self._left(error)
                if left <= 0:
                    raise
            self.pause(random.uniform(0, min(longest, left)))
            longest = min(2 * longest, _LONGEST_SECONDS)
            attempt = in_background(request)

    def pause(self, seconds: float) -> None:
        """Let some time pass, and tell that it does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check(self._patience.stopped.wait(min(left, _STEP_SECONDS)))

    def _of(self, attempt: futures.Future[Result]) -> Result:
        while not attempt.done():
            futures.wait([attempt], _STEP_SECONDS)
            self._check(self._patience.stopped.is_set())
        return attempt.result()

    def _check(self, is_stopped: bool) -> None:
        if is_stopped:
            raise InterruptedRunError(f"stopped while waiting for {self._what}")
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._alive()
            self._patience.tell(f"waiting for {self._what} for {now - self._begun:.0f} s")

    def _left(self, error: Exception) -> float:
        seconds = self._patience.seconds
        allowed = min(seconds, _DENIED_SECONDS) if isinstance(error, DeniedError) else seconds
        return self._since + allowed - time.monotonic()


def in_background(request: Callable[[], Result]) -> futures.Future[Result]:
    """*request* in a thread of its own, which keeps no process from ending."""
    future: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            future.set_result(request())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="store-request", daemon=True).start()
    return future


def read_object(store: Store, key: str, patience: Patience) -> bytes:
    """The whole object at *key*. A folder's errors do not pass, so they are not waited for."""
    if store.local_path(key) is not None:
        return store.read(key)
    return patience.watch(f"{store.uri}/{key}").do(lambda: store.read(key))
