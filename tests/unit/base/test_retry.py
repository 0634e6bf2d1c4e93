"""A store that is away is waited for: how long, how it is told, what ends it, and what is never waited for."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.base import retry
from pipeline.base.errors import DamageError, FailedError, InterruptedRunError, StoreAccessError
from pipeline.base.retry import PERMANENT, RetryPolicy, attempts, backoff, in_background, read_object, with_retry
from pipeline.base.store.local import LocalStore
from pipeline.base.store.protocol import DeniedError, KeyRefusedError, NoBucketError
from tests.support.far import FarStore

AWAY = StoreAccessError("no answer")
BOTH = pytest.mark.parametrize("in_thread", [True, False], ids=["thread", "inline"])


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.005)
    monkeypatch.setattr(retry, "_LONGEST_SECONDS", 0.02)


def failing(*errors: Exception) -> Callable[[], str]:
    """A request that raises each of *errors* in turn, and then gives "done"."""
    left = list(errors)

    def request() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return request


@BOTH
def test_a_request_is_repeated_until_it_succeeds(in_thread: bool) -> None:
    policy = RetryPolicy(60, in_thread=in_thread)
    assert policy.call(failing(AWAY, FailedError("broke off"), AWAY)) == "done"


@BOTH
def test_the_last_error_is_raised_when_the_time_is_over(in_thread: bool) -> None:
    times = 0

    def request() -> None:
        nonlocal times
        times += 1
        raise StoreAccessError(f"attempt {times}")

    with pytest.raises(StoreAccessError) as caught:
        RetryPolicy(0.1, in_thread=in_thread).call(request)
    assert times > 2
    assert caught.value.message == f"attempt {times}"
    times = 0
    with pytest.raises(StoreAccessError, match="attempt 1"):
        RetryPolicy(0, in_thread=in_thread).call(request)


@pytest.mark.parametrize("error", [kind("x") for kind in PERMANENT], ids=lambda error: type(error).__name__)
def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        RetryPolicy(3600).call(failing(error))


def test_each_user_names_what_does_not_pass() -> None:
    assert RetryPolicy(60, permanent=(KeyRefusedError,)).call(failing(DamageError("x"), NoBucketError("x"))) == "done"

    class FullError(FailedError):
        pass

    transfer = RetryPolicy(3600).start("x", permanent=(FullError,))
    with pytest.raises(FullError):
        transfer.call(failing(AWAY, FullError("full")))
    with pytest.raises(DamageError):
        transfer.call(failing(DamageError("x")))


def test_an_error_that_is_not_the_stores_is_raised_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        RetryPolicy(3600).call(lambda: 1 / 0)


def test_a_denial_is_waited_for_less_long() -> None:
    denied = DeniedError("denied")
    with pytest.raises(DeniedError):
        RetryPolicy(3600, denied_seconds=0).call(failing(denied))
    assert RetryPolicy(3600, denied_seconds=60).call(failing(denied, denied)) == "done"
    with pytest.raises(DeniedError):
        RetryPolicy(0, denied_seconds=60).call(failing(denied))


@BOTH
def test_a_stop_ends_the_waiting_soon(in_thread: bool) -> None:
    stopped = threading.Event()
    policy = RetryPolicy(3600, stopped=stopped, in_thread=in_thread)

    def request() -> None:
        stopped.set()
        raise AWAY

    with pytest.raises(InterruptedRunError, match="stopped while waiting for the store"):
        policy.call(request)


def test_a_stop_is_noticed_while_a_request_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_STOP_SECONDS", 0.01)
    stopped, end = threading.Event(), threading.Event()
    threading.Timer(0.05, stopped.set).start()
    try:
        with pytest.raises(InterruptedRunError):
            RetryPolicy(3600, stopped=stopped).call(lambda: end.wait(60))
    finally:
        end.set()


def test_the_listener_hears_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MESSAGE_SECONDS", 0.02)
    monkeypatch.setattr(retry, "_STOP_SECONDS", 0.01)
    messages: list[str] = []
    alive: list[int] = []
    end = threading.Event()

    def listen(text: str) -> None:
        messages.append(text)
        if len(messages) == 3:
            end.set()

    transfer = RetryPolicy(3600, listen).start("s3://bucket/key", lambda: alive.append(1))
    assert transfer.call(lambda: end.wait(60))
    assert messages[0] == "waiting for s3://bucket/key for 0 s"
    assert len(alive) == 2 + len(messages)  # at the start, with each message, with the result


def test_the_time_begins_anew_with_each_piece() -> None:
    transfer, deadline = RetryPolicy(0.3).start("x"), time.monotonic() + 1.0

    def request() -> str:
        if time.monotonic() > deadline:
            return "done"
        transfer.note_progress()
        raise AWAY

    assert transfer.call(request) == "done"


def test_a_first_attempt_that_is_under_way_is_used() -> None:
    calls: list[str] = []

    def later() -> str:
        calls.append("later")
        return "later"

    assert RetryPolicy(60).start("x").call(later, in_background(lambda: "first")) == "first"
    assert calls == []
    assert RetryPolicy(60).start("x").call(later, in_background(failing(AWAY))) == "later"
    assert calls == ["later"]


def test_a_policy_travels_without_what_belongs_to_a_process() -> None:
    policy = RetryPolicy(7, print, threading.Event(), permanent=(KeyRefusedError,), denied_seconds=3, in_thread=False)
    policy.stopped.set()
    arrived = pickle.loads(pickle.dumps(policy))
    assert (arrived.seconds, arrived.denied_seconds, arrived.in_thread) == (7, 3, False)
    assert arrived.permanent == (KeyRefusedError,)
    assert arrived.on_message is retry.ignore_message
    assert not arrived.stopped.is_set()


def test_a_folder_is_not_waited_for_and_a_bucket_is(tmp_path: Path) -> None:
    messages: list[str] = []
    with pytest.raises(StoreAccessError):
        with_retry(LocalStore(tmp_path), RetryPolicy(3600, messages.append), "a", failing(AWAY))
    far = FarStore(tmp_path)
    assert with_retry(far, RetryPolicy(3600), "a", failing(AWAY, AWAY)) == "done"
    far.put("a", b"data")
    moods = [AWAY]

    def mood(key: str) -> None:
        if moods:
            raise moods.pop()

    far.mood = mood
    assert read_object(far, "a", RetryPolicy(3600)) == b"data"


def test_backoff_doubles_up_to_the_longest_and_is_drawn() -> None:
    drawn = [backoff(3, 1.0, 100.0) for _ in range(200)]
    assert all(0 <= seconds <= 4 for seconds in drawn)
    assert max(drawn) > 3 > 1 > min(drawn)
    assert len(set(drawn)) == 200
    assert all(2 <= backoff(3, 1.0, 100.0, jitter=0.5) <= 4 for _ in range(200))
    assert backoff(1, 0.2, 10.0, jitter=0.0) == 0.2
    assert backoff(1_000_000, 1.0, 300.0, jitter=0.0) == 300.0  # after days of waiting


def test_attempts_pause_between_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    assert list(attempts(4, 0.2)) == [0, 1, 2, 3]
    assert slept == [0.2, 0.4, 0.8]
    for _ in attempts(4, 0.2):
        break  # one that succeeds at once has not waited
    assert len(slept) == 3
