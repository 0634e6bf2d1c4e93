"""Ranks and loader processes are killed by a seeded list, again and again: losses and final weights stay the same."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pipeline.stream.audit_check import check_audit
from tests.ranks.pretraining import (
    AFTER,
    BATCH,
    BEFORE,
    SAMPLES,
    Fault,
    Job,
    final_weights,
    losses,
    make_workspace,
    recipe_of,
    run_through,
)

Faults = tuple[Fault, ...]


def drawn(seed: int, num_attempts: int, steps: int, every: int) -> list[Faults]:
    """Attempts that are each ended by the kill of a rank, a little further on; loader processes are killed before."""
    draw = random.Random(seed)
    attempts, start, end = [], 0, 0
    for _ in range(num_attempts - 1):
        end = min(steps - 2, end + draw.randint(1, every))
        killed = Fault("kill worker", draw.randrange(2), draw.randint(start, max(start, end - 1)))
        moment = draw.choice([BEFORE, AFTER])
        attempts.append((killed, Fault("kill", draw.randrange(2), end + (moment == AFTER), moment)))
        start = end // every * every
    return [*attempts, (Fault("kill worker", draw.randrange(2), steps - 2),)]


def check_kills(tmp_path: Path, stage: int, attempts: list[Faults], steps: int = 12) -> int:
    """How many were killed. Every loss that any attempt had, and the weights at the end, are the calm run's."""
    print(f"stage {stage}: {attempts}")
    store = make_workspace(tmp_path)
    calm, shaken = Job(recipe_of("calm", stage, steps=steps)), recipe_of("shaken", stage, steps=steps)
    first, *others = [[Job(shaken, faults)] for faults in attempts]
    told = run_through(store, (2, [calm, *first]), *((2, jobs) for jobs in others))
    assert [bool(end) for end in told.ends] == [True] * (len(attempts) - 1) + [False]
    assert ["died" in str(verdict) for verdict in told.verdicts] == [True] * (len(attempts) - 1)
    found = losses(store, "shaken")
    assert sorted(found) == list(range(1, steps + 1))
    assert found == losses(store, "calm")
    assert final_weights(store, "shaken") == final_weights(store, "calm")
    assert final_weights(store, "calm")[0] == steps
    audit = check_audit(store, "shaken")
    assert (audit.problems, audit.end) == ((), steps * BATCH)
    assert audit.whole_epochs == {"tiny": steps * BATCH // SAMPLES}
    return len(list(store.list("faults/kill")))


@pytest.mark.timeout(600)
def test_a_killed_rank_and_a_killed_loader_change_nothing(tmp_path: Path) -> None:
    """ZeRO 3, the stage that keeps least on each rank; the others in the long test."""
    attempts: list[Faults] = [(Fault("kill worker", 0, 2), Fault("kill", 1, 6, AFTER)), ()]
    assert check_kills(tmp_path, 3, attempts) == 2


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_many_kills_change_nothing(tmp_path: Path, stage: int) -> None:
    """Nine kills at each stage: with those of test_pretrain_ray.py and test_chain.py over 25 in all."""
    seed = int(os.environ.get("VITPIPE_SEED", "1"))
    assert check_kills(tmp_path, stage, drawn(seed * 10 + stage, num_attempts=5, steps=24, every=4), steps=24) == 9
