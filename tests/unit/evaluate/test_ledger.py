"""Claims: one of many racers wins; what died, expired or failed is taken over; a result is recorded once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import TypeVar

import pytest

from pipeline.base.digests import sha256_hex
from pipeline.base.lease import CLOCK_SKEW_SECONDS
from pipeline.base.retry import RetryPolicy
from pipeline.base.store import Store, open_store
from pipeline.evaluate import ledger as ledger_module
from pipeline.evaluate.ledger import (
    CLAIM_SECONDS,
    MAX_LOSSES,
    Ledger,
    State,
    current_owner,
    is_gone,
    retry_seconds,
)
from pipeline.evaluate.worker import record_result
from pipeline.records.ledger import Claim, Owner, ledger_key
from pipeline.records.record import read_record
from pipeline.records.score import EvaluationKey, EvaluationResult, file_key, list_results

RACERS = 16
NO_PROCESS = 2**30  # above any kernel's limit of process numbers
ID = sha256_hex(b"an evaluation")
Value = TypeVar("Value")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty workspace."""
    return open_store(str(tmp_path))


class Clock:
    """Stands in for the time of the ledger."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr(ledger_module, "time", SimpleNamespace(time=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def ledger_of(store: Store, name: str, place: str = "another-host", pid: int = 1) -> Ledger:
    """The ledger as another process sees it."""
    ledger = Ledger(store, "r")
    ledger.owner = Owner(place=place, pid=pid, token=name)
    ledger.refresh()
    return ledger


def race(function: Callable[[int], Value]) -> list[Value]:
    """What *function* gave each of the racers, which start together."""
    start = Barrier(RACERS)

    def run(number: int) -> Value:
        start.wait()
        return function(number)

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


def race_to_claim(store: Store) -> list[int | None]:
    """Who claimed, of racers that have all looked before the first one claims."""
    ledgers = [ledger_of(store, str(number)) for number in range(RACERS)]
    return race(lambda number: ledgers[number].claim(ID, "n"))


def state(store: Store, now: float) -> State:
    """As whoever comes anew sees it."""
    return ledger_of(store, "looks").view[ID].state(now)


def one_of(number: int) -> list[int | None]:
    return [number] + [None] * (RACERS - 1)


def test_one_of_many_racers_claims(store: Store) -> None:
    assert sorted(race_to_claim(store), key=str) == one_of(1)


def test_who_is_too_late_knows_it_then(store: Store, clock: Clock) -> None:
    early, late = ledger_of(store, "early"), ledger_of(store, "late")
    assert early.claim(ID, "n") == 1
    assert late.claim(ID, "n") is None
    assert late.view[ID].claim == early.view[ID].claim
    assert late.view[ID].state(clock.now) == "running"


def test_a_claim_counts_until_it_expires(store: Store, clock: Clock) -> None:
    assert ledger_of(store, "first").claim(ID, "n") == 1
    clock.now += CLAIM_SECONDS + CLOCK_SKEW_SECONDS - 1
    assert state(store, clock.now) == "running"
    clock.now += 2
    assert state(store, clock.now) == "due"
    assert sorted(race_to_claim(store), key=str) == one_of(2)
    assert state(store, clock.now) == "running"


def test_a_renewed_claim_counts_longer(store: Store, clock: Clock) -> None:
    first = ledger_of(store, "first")
    first.claim(ID, "n")
    for _ in range(5):
        clock.now += CLAIM_SECONDS / 3
        first.renew(ID)
    assert state(store, clock.now + CLAIM_SECONDS) == "running"
    assert state(store, clock.now + CLAIM_SECONDS + CLOCK_SKEW_SECONDS + 1) == "due"


def test_a_renewal_of_an_earlier_claim_says_nothing_of_the_next(store: Store, clock: Clock) -> None:
    stalled = ledger_of(store, "stalled")
    stalled.claim(ID, "n")
    clock.now += CLAIM_SECONDS + CLOCK_SKEW_SECONDS + 1
    assert ledger_of(store, "next").claim(ID, "n") == 2
    clock.now += CLAIM_SECONDS
    stalled.renew(ID)
    assert state(store, clock.now + CLOCK_SKEW_SECONDS + 1) == "due"


def test_what_a_dead_process_of_this_place_claimed_is_taken_over(store: Store) -> None:
    dead = ledger_of(store, "dead", current_owner().place, NO_PROCESS)
    assert is_gone(dead.owner)
    assert dead.claim(ID, "n") == 1
    assert state(store, 0.0) == "due"
    assert ledger_of(store, "next").claim(ID, "n") == 2


def test_a_living_process_and_other_places_are_not_gone(store: Store) -> None:
    assert not is_gone(current_owner())
    assert current_owner().pid == os.getpid()
    assert not is_gone(Owner(place="another-host", pid=NO_PROCESS, token="t"))
    mine = Ledger(store, "r")
    assert mine.claim(ID, "n") == 1
    assert state(store, mine.view[ID].claim.since) == "running"


def test_a_claim_whose_answer_was_lost_is_still_ours(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ledger_of(store, "mine")
    put = store.put_if_absent
    monkeypatch.setattr(store, "put_if_absent", lambda key, data: put(key, data) and False)
    assert mine.claim(ID, "n") == 1
    assert read_record(Claim, store, ledger_key(ID, "claim", 1)).owner == mine.owner


def test_a_failure_waits_longer_each_time_and_is_final_in_the_end(store: Store, clock: Clock) -> None:
    waited = []
    for number in (1, 2, 3):
        ledger = ledger_of(store, f"try {number}")
        assert ledger.claim(ID, "n") == number
        failure = ledger.end(ID, "error", "no memory", max_tries=3)
        assert failure.errors == number
        if failure.retry_after is not None:
            waited.append(failure.retry_after - clock.now)
            assert state(store, clock.now) == "waiting"
            clock.now = failure.retry_after
            assert state(store, clock.now) == "due"
    assert failure.retry_after is None
    assert state(store, clock.now + 1e6) == "failed"
    assert 0.5 <= waited[0] <= 1 <= waited[1] <= 2


def test_retries_never_come_at_one_moment_and_never_too_late() -> None:
    assert len({retry_seconds(3) for _ in range(50)}) == 50
    assert all(2 <= retry_seconds(3) <= 4 for _ in range(50))
    assert all(150 <= retry_seconds(1_000) <= 300 for _ in range(50))


def test_a_lost_worker_is_not_the_evaluations_fault_until_it_happens_often(store: Store, clock: Clock) -> None:
    ledger = ledger_of(store, "one")
    for number in range(1, MAX_LOSSES + 1):
        ledger.claim(ID, "n")
        failure = ledger.end(ID, "lost", "its worker went away", max_tries=1)
        assert (failure.errors, failure.losses) == (0, number)
        assert (failure.retry_after is None) == (number == MAX_LOSSES)


def test_what_is_refused_is_final_and_what_is_released_is_due(store: Store, clock: Clock) -> None:
    ledger = ledger_of(store, "one")
    ledger.claim(ID, "n")
    ledger.end(ID, "released", "interrupted", max_tries=1)
    assert state(store, clock.now) == "due"
    assert ledger_of(store, "two").claim(ID, "n") == 2
    other = ledger_of(store, "three")
    other.end(ID, "refused", "other classes", max_tries=5)
    assert state(store, clock.now) == "failed"


def test_who_was_taken_over_cannot_end_the_work_of_the_next(store: Store, clock: Clock) -> None:
    stalled = ledger_of(store, "stalled")
    stalled.claim(ID, "n")
    clock.now += CLAIM_SECONDS + CLOCK_SKEW_SECONDS + 1
    assert ledger_of(store, "next").claim(ID, "n") == 2
    stalled.end(ID, "refused", "too late", max_tries=1)
    assert state(store, clock.now) == "running"


def result(seed: int = 0, seconds: float = 1.0, files: dict[str, str] | None = None) -> EvaluationResult:
    """A result; *seconds* tells its writer."""
    key = EvaluationKey(
        weights_digest="w",
        evaluator="knn",
        protocol_version=1,
        task="a",
        dataset_digests=("1", "2"),
        transform={},
        settings={},
        seed=seed,
    )
    return EvaluationResult(
        id=key.id, key=key, metrics=(), num_samples=1, chosen={}, seconds=seconds, files=files or {}
    )


def test_a_result_is_recorded_once_and_its_files_are_its_own(store: Store) -> None:
    def write(number: int) -> bool:
        data = f"outcomes of {number}".encode()
        mine = result(seconds=float(number), files={"outcomes.parquet": sha256_hex(data)})
        return record_result(store, mine, {"outcomes.parquet": data}, 0, RetryPolicy(0))

    recorded = race(write)
    assert sorted(recorded) == [False] * (RACERS - 1) + [True]
    (stored,) = list_results(store)
    assert stored.seconds == recorded.index(True)
    digest = stored.files["outcomes.parquet"]
    assert sha256_hex(store.read(file_key(stored.id, "outcomes.parquet", digest))) == digest
    assert not write(99)
    assert list_results(store) == [stored]


def test_an_invalid_result_is_void_and_its_evaluation_due_again(store: Store, clock: Clock) -> None:
    first, second = result(seconds=1.0), result(seconds=2.0)
    ledger = ledger_of(store, "one")
    ledger.claim(first.id, "n")
    record_result(store, first, {}, 0, RetryPolicy(0))
    ledger.recorded(first.id)
    assert ledger_of(store, "looks").view[first.id].state(clock.now) == "done"
    assert ledger.invalidate(first.id, "a wrong transform")
    assert list_results(store) == []
    seen = ledger_of(store, "two")
    assert seen.view[first.id].state(clock.now) == "due"
    assert seen.claim(first.id, "n") == 2
    assert seen.view[first.id].generation == 1
    record_result(store, second, {}, 1, RetryPolicy(0))
    assert not record_result(store, result(seconds=3.0), {}, 0, RetryPolicy(0)), (
        "one of the void generation counts for nothing"
    )
    assert list_results(store) == [second]
    assert ledger_of(store, "looks").view[first.id].state(clock.now) == "done"


def test_failures_and_claims_of_a_void_generation_do_not_count(store: Store, clock: Clock) -> None:
    failed = ledger_of(store, "one")
    failed.claim(ID, "n")
    failed.end(ID, "refused", "why", max_tries=1)
    assert ledger_of(store, "two").invalidate(ID, "mended")
    assert state(store, clock.now) == "due"
    running = ledger_of(store, "three")
    assert running.claim(ID, "n") == 2
    assert ledger_of(store, "four").invalidate(ID, "once more")
    assert state(store, clock.now) == "due", "what runs is of a void generation"
    assert ledger_of(store, "five").claim(ID, "n") == 3


def test_of_many_who_invalidate_one_does(store: Store) -> None:
    ledgers = [ledger_of(store, str(number)) for number in range(RACERS)]
    assert sorted(race(lambda number: ledgers[number].invalidate(ID, "why"))) == [False] * (RACERS - 1) + [True]


def test_patterns_of_many_who_cancel_are_all_kept(store: Store) -> None:
    ledgers = [ledger_of(store, str(number)) for number in range(RACERS)]
    race(lambda number: ledgers[number].change_cancelled(lambda before: (*before, f"knn on {number}")))
    assert sorted(ledger_of(store, "looks").cancelled) == sorted(f"knn on {number}" for number in range(RACERS))
    assert ledgers[0].change_cancelled(lambda before: [one for one in before if one.endswith("1")])
    assert len(ledger_of(store, "looks").cancelled) == 2
