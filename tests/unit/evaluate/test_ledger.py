"""Claims: one of many racers wins; what died, expired or failed is taken over; a result is recorded once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import TypeVar

import pytest

from pipeline.base.store import Store, open_store
from pipeline.evaluate import ledger
from pipeline.evaluate.ledger import CLAIM_SECONDS, Owner, claim, record, record_failure, recorded_ids
from pipeline.records.score import EvaluationKey, EvaluationResult, list_results

RACERS = 16
NO_PROCESS = 2**30  # above any kernel's limit of process numbers
ELSEWHERE = Owner("another-host", 1)
Value = TypeVar("Value")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty workspace."""
    return open_store(str(tmp_path))


def race(function: Callable[[int], Value]) -> list[Value]:
    """What *function* gave each of the racers, which start together."""
    start = Barrier(RACERS)

    def run(number: int) -> Value:
        start.wait()
        return function(number)

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


def result(seed: int = 0, seconds: float = 1.0) -> EvaluationResult:
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
    return EvaluationResult(id=key.id, key=key, metrics=(), num_samples=1, chosen={}, seconds=seconds, files={})


def test_one_of_many_racers_claims(store: Store) -> None:
    taken = race(lambda number: claim(store, "e", Owner("another-host", number)))
    assert sorted(taken, key=str) == [1] + [None] * (RACERS - 1)


def test_evaluations_are_claimed_apart(store: Store) -> None:
    assert [claim(store, name, ELSEWHERE) for name in "abc"] == [1, 1, 1]
    assert [claim(store, name, ELSEWHERE) for name in "abc"] == [None] * 3


def test_a_claim_counts_until_it_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr(ledger, "time", SimpleNamespace(time=lambda: now))
    assert claim(store, "e", ELSEWHERE) == 1
    now += CLAIM_SECONDS - 1
    assert claim(store, "e", Owner("third-host", 1)) is None
    now += 2
    taken = race(lambda number: claim(store, "e", Owner("third-host", number)))
    assert sorted(taken, key=str) == [2] + [None] * (RACERS - 1)
    assert claim(store, "e", ELSEWHERE) is None


def test_what_a_dead_process_of_this_host_claimed_is_taken_over(store: Store) -> None:
    dead = Owner(socket.gethostname(), NO_PROCESS)
    assert dead.is_gone()
    assert claim(store, "e", dead) == 1
    assert claim(store, "e", ELSEWHERE) == 2


def test_a_living_process_and_other_hosts_are_not_gone(store: Store) -> None:
    assert not Owner.current().is_gone()
    assert not Owner("another-host", NO_PROCESS).is_gone()
    assert claim(store, "e", Owner.current()) == 1
    assert claim(store, "e", ELSEWHERE) is None


def test_after_a_failure_it_can_be_claimed_again(store: Store) -> None:
    assert claim(store, "e", ELSEWHERE) == 1
    record_failure(store, "e", 1, "no memory")
    assert json.loads(store.read("evaluations/e/failure-1.json")) == {"reason": "no memory"}
    assert claim(store, "e", ELSEWHERE) == 2
    assert claim(store, "e", ELSEWHERE) is None
    record_failure(store, "e", 2, "still none")
    taken = race(lambda number: claim(store, "e", Owner("another-host", number)))
    assert sorted(taken, key=str) == [3] + [None] * (RACERS - 1)


def test_a_result_is_recorded_once(store: Store) -> None:
    recorded = race(lambda number: record(store, result(seconds=float(number))))
    assert sorted(recorded) == [False] * (RACERS - 1) + [True]
    (stored,) = list_results(store)
    assert stored.seconds == recorded.index(True)
    assert not record(store, result(seconds=99.0))
    assert list_results(store) == [stored]


def test_recorded_are_those_with_a_result(store: Store) -> None:
    assert recorded_ids(store) == set()
    claim(store, "claimed", ELSEWHERE)
    record_failure(store, "failed", 1, "why")
    for seed in (0, 1):
        record(store, result(seed))
    assert recorded_ids(store) == {result(0).id, result(1).id}


def test_a_claim_lasts_longer_than_an_evaluation_may_wait(store: Store) -> None:
    before = time.time()
    claim(store, "e", ELSEWHERE)
    told = json.loads(store.read("evaluations/e/claim-1.json"))
    assert before + CLAIM_SECONDS <= told["expires"] <= time.time() + CLAIM_SECONDS
    assert (told["host"], told["pid"]) == ("another-host", 1)
