"""A rank that is stopped or stuck is found, named and killed by the driver's supervisor; the others end at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.store import Store
from pipeline.train.watchdog import RankStatus
from tests.ranks.pretraining import Fault, Job, Told, final_weights, losses, make_workspace, recipe_of, run_through

FOUND_SECONDS = 10.0  # what is promised
pytestmark = pytest.mark.timeout(600)


def disturbed(tmp_path: Path, fault: Fault) -> tuple[Store, Told, RankStatus]:
    """A run that meets *fault* and is given again: it comes to what an undisturbed one does. Who was blamed for it."""
    store = make_workspace(tmp_path)
    calm, met = Job(recipe_of("calm", 1)), Job(recipe_of("met", 1), (fault,))
    told = run_through(store, (2, [calm, met]), (2, [Job(met.recipe)]))
    assert told.ends[0]
    assert told.ends[1] == ""
    assert losses(store, "met") == losses(store, "calm")
    assert final_weights(store, "met") == final_weights(store, "calm")
    (verdict,) = told.verdicts
    (culprit,) = verdict.culprits
    assert ("0001", f"{verdict}; all ranks are restarted") in told.texts
    other = store.read(f"runs/met/logs/0001/rank-{1 - fault.rank}.log").decode()
    assert f"ends itself: rank {fault.rank} (host " in other
    assert (culprit.rank, culprit.step <= 6) == (fault.rank, True)  # the step is as it was last heard
    return store, told, culprit


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_stopped_rank_is_found_killed_and_named(tmp_path: Path, rank: int) -> None:
    _, told, culprit = disturbed(tmp_path, Fault("stop", rank, 6))
    assert culprit.silent_seconds < FOUND_SECONDS
    assert "stopped (SIGSTOP)" in str(told.verdicts[0])


@pytest.mark.long
def test_a_rank_that_is_stuck_in_python_is_found_by_those_who_wait_for_it(tmp_path: Path) -> None:
    store, told, culprit = disturbed(tmp_path, Fault("stuck", 1, 6))
    assert not culprit.waits
    (fault,) = [info.key for info in store.list("faults/stuck-")]
    found = told.heard[told.texts.index(("0001", f"{told.verdicts[0]}; all ranks are restarted"))]
    assert found - float(fault.rpartition("-")[2]) < FOUND_SECONDS
    assert "while the others wait for it" in str(told.verdicts[0])
    assert "pretraining.py" in culprit.location
