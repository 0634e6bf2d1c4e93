"""Repeat requests that fail, for a while, at times that no two threads share."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeVar

from pipeline.base.errors import DamageError, FailedError, InterruptedRunError, StoreAccessError
from pipeline.base.store.protocol import DeniedError, KeyRefusedError, NoBucketError, Store

Result = TypeVar("Result")

_FIRST_SECONDS, _LONGEST_SECONDS = 0.2, 10.0


def wait_before(attempt: int) -> None:
    """Longer and longer before each repeated *attempt*, and never the same for two clients."""
    if attempt:
        time.sleep(random.uniform(0, 0.1 * 2**attempt))


class StagePatience:
    """Repeats what a store could not do just now. A folder's errors do not pass, so they are not waited for."""

    def __init__(self, store: Store, seconds: float, stopped: threading.Event) -> None:
        self._seconds = 0.0 if store.local_path("x") else seconds
        self._stopped = stopped

    def __call__(self, request: Callable[[], Result]) -> Result:
        """The result of *request*, which may be called many times. Raises its last error when patience ends."""
        deadline = time.monotonic() + self._seconds
        longest = _FIRST_SECONDS
        while True:
            try:
                return request()
            except KeyRefusedError:
                raise
            except (FailedError, StoreAccessError):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
            self._stopped.wait(random.uniform(0, min(longest, left)))
            self.check()
            longest = min(2 * longest, _LONGEST_SECONDS)

    def check(self) -> None:
        """Raise when the stage was stopped meanwhile."""
        if self._stopped.is_set():
            raise InterruptedRunError("the stage was stopped", "the same command goes on where it stopped")


TELL_SECONDS = 5.0
_DENIED_SECONDS = 30.0  # credentials are renewed within it; a longer denial is an answer
_STEP_SECONDS = 0.5  # how soon a stop is noticed
_FIRST_SECONDS, _LONGEST_SECONDS = 0.2, 10.0
_LASTING = (KeyRefusedError, NoBucketError, DamageError)  # these do not pass


def ignore_message(text: str) -> None:
    """For those who do not listen."""


class RetryPolicy:
    """How long a store is waited for, who is told meanwhile, and what ends the waiting before.

    *tell* gets a line like "waiting for s3://bucket/datasets/a/shard-000012.tar for 40 s". *stopped*, when it is set,
    ends every waiting with InterruptedRunError. *lasting*: more errors that do not pass.
    """

    def __init__(
        self,
        seconds: float = 600.0,
        tell: Callable[[str], None] = ignore_message,
        stopped: threading.Event | None = None,
        lasting: tuple[type[Exception], ...] = (),
    ) -> None:
        self.seconds, self.tell, self.stopped = seconds, tell, stopped or threading.Event()
        self.lasting = _LASTING + lasting

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "lasting": self.lasting[len(_LASTING) :]}

    def without(self, *lasting: type[Exception]) -> Self:
        """The same, but for errors that do not pass either."""
        policy = object.__new__(type(self))
        policy.__dict__ |= self.__dict__ | {"lasting": _LASTING + lasting}
        return policy

    def __setstate__(self, state: dict[str, Any]) -> None:
        RetryPolicy.__init__(self, **state)  # who is told, and what stops it, belong to a process

    def watch(self, what: str, alive: Callable[[], None] = lambda: None) -> Retry:
        """Begin to wait for *what*. *alive* is called with every line that is told."""
        return Retry(self, what, alive)


class Retry:
    """One waiting. Patience begins with it, and anew with each ``arrived``."""

    def __init__(self, patience: RetryPolicy, what: str, alive: Callable[[], None]) -> None:
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
            except self._patience.lasting:
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


def read_object(store: Store, key: str, patience: RetryPolicy) -> bytes:
    """The whole object at *key*. A folder's errors do not pass, so they are not waited for."""
    if store.local_path(key) is not None:
        return store.read(key)
    return patience.watch(f"{store.uri}/{key}").do(lambda: store.read(key))


def with_retry(store: Store, patience: RetryPolicy, what: str, request: Callable[[], Result]) -> Result:
    """What *request* gives; a store that does not answer is waited for. A folder's errors do not pass."""
    if store.local_path(what) is not None:
        return request()
    return patience.watch(f"{store.uri}/{what}").do(request)


_AGAIN_SECONDS = 60.0  # after a refusal: a store that is away may take half a minute to say so, which training waits


class BestEffortWriter:
    """Stores what can wait, and says once that it cannot, until it can again. What is not stored has to be kept.

    *around* is entered while training waits for the store.
    """

    def __init__(
        self, say: Callable[[str], None], around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._say, self._around = say, around
        self._refused: set[Callable[[], object]] = set()  # one that had nothing to store has not found out otherwise
        self._not_before = 0.0

    def insist(self) -> None:
        """Try the next time, however short ago the last refusal was."""
        self._not_before = 0.0

    def stored(self, flush: Callable[[], object]) -> bool:
        """Whether *flush* went well. After a refusal nothing is tried for a minute."""
        if time.monotonic() < self._not_before:
            return False
        try:
            with self._around():
                flush()
        except (FailedError, StoreAccessError, OSError) as error:  # OSError: of the folder for temporary files
            self._not_before = time.monotonic() + _AGAIN_SECONDS
            if not self._refused:
                what = getattr(error, "what", "") or f"{type(error).__name__}: {error}"
                self._say(f"metrics and audit are not stored for now, they are kept and training goes on: {what}")
            self._refused.add(flush)
            return False
        self._refused.discard(flush)
        return True
