"""Retry: requests to a store that does not answer are repeated for a while, at times that no two clients share.

``with_retry`` and ``read_object`` serve a single request. A transfer that comes in pieces calls ``RetryPolicy.start``,
and its time begins anew with each piece. ``backoff`` and ``attempts`` are for those who count. ``BestEffortWriter``
does not wait at all: it tries again later what a store has refused.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from pipeline.base.errors import DamageError, FailedError, InterruptedRunError, StoreAccessError, VitpipeError
from pipeline.base.store.protocol import DeniedError, KeyRefusedError, NoBucketError, Store

Result = TypeVar("Result")

MESSAGE_SECONDS = 5.0  # between two messages that a store is waited for
PERMANENT: tuple[type[Exception], ...] = (KeyRefusedError, NoBucketError, DamageError)  # errors that do not pass
_DENIED_SECONDS = 30.0  # credentials are renewed within it; a longer denial is an answer
_FIRST_SECONDS, _LONGEST_SECONDS = 0.2, 10.0  # the longest pause before the second attempt, and before any later one
_STOP_SECONDS = 0.5  # how soon a stop is noticed
_MAX_DOUBLINGS = 60  # 2.0 ** 1024 is an OverflowError, and a store may be away for days
_REFUSED_SECONDS = 60.0  # no attempt after a refusal: a store that is away may take half a minute to answer at all


def backoff(attempt: int, first: float, longest: float, jitter: float = 1.0) -> float:
    """Seconds to wait after failed *attempt* (1 is the first): *first*, doubled each time, at most *longest*.

    *jitter* is the share of it that is drawn: 1 gives between nothing and all of it ("full jitter"), 0.5 at least half.
    """
    return random.uniform(1.0 - jitter, 1.0) * min(first * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS), longest)


def attempts(count: int, first: float, longest: float = _LONGEST_SECONDS) -> Iterator[int]:
    """0, 1, ... *count* - 1, with the pause of ``backoff`` before each but the first; for a loop that retries."""
    for attempt in range(count):
        if attempt:
            time.sleep(backoff(attempt, first, longest))
        yield attempt


def ignore_message(text: str) -> None:
    """The listener of a policy that has none."""


class RetryPolicy:
    """For how long requests to a store are repeated, where messages about it go, and what ends it earlier.

    *seconds*: from the first error, or from the last piece of a transfer, to the last attempt.
    *on_message* gets a line like "waiting for s3://bucket/datasets/a/shard-000012.tar for 40 s".
    *stopped*: once it is set, every waiting ends with InterruptedRunError.
    *permanent*: errors that are raised at once, because waiting does not help.
    *denied_seconds*: the same as *seconds*, for a denial.
    *in_thread*: each request runs in a thread of its own. One that meets a dead server may take minutes to return;
    meanwhile *on_message* is called, and a stop is noticed.

    Pickled, it loses its listener and its event: they belong to a process.
    """

    def __init__(
        self,
        seconds: float = 600.0,
        on_message: Callable[[str], None] = ignore_message,
        stopped: threading.Event | None = None,
        *,
        permanent: tuple[type[Exception], ...] = PERMANENT,
        denied_seconds: float = _DENIED_SECONDS,
        in_thread: bool = True,
    ) -> None:
        self.seconds, self.on_message, self.stopped = seconds, on_message, stopped or threading.Event()
        self.permanent, self.denied_seconds, self.in_thread = permanent, denied_seconds, in_thread

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("on_message", "stopped")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RetryPolicy.__init__(self, **state)

    def call(self, request: Callable[[], Result], label: str = "the store") -> Result:
        """The result of *request*, which may be called many times. Raises its last error when the time is over."""
        return self.start(label).call(request)

    def start(
        self, label: str, on_alive: Callable[[], None] = lambda: None, permanent: tuple[type[Exception], ...] = ()
    ) -> Retry:
        """Begin a transfer of *label*. *on_alive* is called with each piece and each message.

        *permanent*: more errors of this transfer that waiting does not help against.
        """
        return Retry(self, label, on_alive, self.permanent + permanent)


class Retry:
    """One transfer under a policy. Its time begins when it is made, and anew with each ``note_progress``."""

    def __init__(
        self, policy: RetryPolicy, label: str, on_alive: Callable[[], None], permanent: tuple[type[Exception], ...]
    ) -> None:
        self._policy, self._label, self._on_alive, self._permanent = policy, label, on_alive, permanent
        self._started = self._last_message = time.monotonic()
        self.note_progress()

    def note_progress(self) -> None:
        """A piece has come. May be called by another thread."""
        self._last_progress = time.monotonic()
        self._on_alive()

    def call(self, request: Callable[[], Result], first: futures.Future[Result] | None = None) -> Result:
        """The result of *request*; *first* is its first attempt, already under way.

        Raises its last error when the time is over, and InterruptedRunError once the policy is stopped.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                result = self._run(request, first)
                self.note_progress()
                return result
            except self._permanent:
                raise
            except (FailedError, StoreAccessError) as error:
                left = self._seconds_left(error)
                if left <= 0:
                    raise
            self.pause(backoff(attempt, _FIRST_SECONDS, min(_LONGEST_SECONDS, left)))
            first = None

    def pause(self, seconds: float) -> None:
        """Let *seconds* pass. Raises InterruptedRunError once the policy is stopped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check(self._policy.stopped.wait(min(left, _STOP_SECONDS)))

    def _run(self, request: Callable[[], Result], first: futures.Future[Result] | None) -> Result:
        if first is None and not self._policy.in_thread:
            return request()
        attempt = first or in_background(request)
        while not attempt.done():
            futures.wait([attempt], _STOP_SECONDS)
            self._check(self._policy.stopped.is_set())
        return attempt.result()

    def _check(self, is_stopped: bool) -> None:
        if is_stopped:
            raise InterruptedRunError(f"stopped while waiting for {self._label}")
        now = time.monotonic()
        if now - self._last_message >= MESSAGE_SECONDS:
            self._last_message = now
            self._on_alive()
            self._policy.on_message(f"waiting for {self._label} for {now - self._started:.0f} s")

    def _seconds_left(self, error: Exception) -> float:
        policy = self._policy
        limit = min(policy.seconds, policy.denied_seconds) if isinstance(error, DeniedError) else policy.seconds
        return self._last_progress + limit - time.monotonic()


def in_background(request: Callable[[], Result]) -> futures.Future[Result]:
    """*request* in a thread of its own, which keeps no process from ending."""
    future: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            future.set_result(request())
        except BaseException as error:  # raised where the result is taken
            future.set_exception(error)

    threading.Thread(target=run, name="store-request", daemon=True).start()
    return future


def with_retry(store: Store, policy: RetryPolicy, key: str, request: Callable[[], Result]) -> Result:
    """The result of *request* about *key* of *store*. A folder's errors do not pass, so they are not waited for."""
    if store.local_path(key) is not None:
        return request()
    return policy.call(request, f"{store.uri}/{key}")


def read_object(store: Store, key: str, policy: RetryPolicy) -> bytes:
    """The object at *key*, read under *policy*."""
    return with_retry(store, policy, key, lambda: store.read(key))


class BestEffortWriter:
    """Writes what can wait (metrics, events, the audit): no store ends a run by refusing it.

    The first refusal is one message, until writing has worked again. What is not written has to be kept by its owner.
    *around* is entered while training waits for the store.
    """

    def __init__(
        self, on_message: Callable[[str], None], around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._on_message, self._around = on_message, around
        # by function: one that has nothing to write succeeds, and does not know that the others still cannot
        self._refused: set[Callable[[], object]] = set()
        self._not_before = 0.0

    def retry_now(self) -> None:
        """Make the next ``write`` an attempt, however recent the last refusal is."""
        self._not_before = 0.0

    def write(self, flush: Callable[[], object]) -> bool:
        """True when *flush* did its work. After a refusal nothing is tried for a minute."""
        if time.monotonic() < self._not_before:
            return False
        try:
            with self._around():
                flush()
        except (FailedError, StoreAccessError, OSError) as error:  # OSError: of the folder for temporary files
            self._not_before = time.monotonic() + _REFUSED_SECONDS
            if not self._refused:
                reason = error.message if isinstance(error, VitpipeError) else f"{type(error).__name__}: {error}"
                self._on_message(
                    f"metrics and audit are not stored for now, they are kept and training goes on: {reason}"
                )
            self._refused.add(flush)
            return False
        self._refused.discard(flush)
        return True
