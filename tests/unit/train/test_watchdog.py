"""Which rank is to blame: the rule, over what each rank last said of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.train.heartbeat import DATA, FIRST_STEP, SAVING, STARTING, STEP
from pipeline.train.watchdog import RankStatus, diagnose_hang


def seen(rank: int, **fields: Any) -> RankStatus:
    """A rank that waits for the others in a step."""
    plain = RankStatus(
        rank=rank,
        host=f"host-{rank}",
        pid=100 + rank,
        step=7,
        phase=STEP,
        phase_seconds=1.0,
        waits=True,
        longest_seconds=0.2,
        silent_seconds=0.3,
    )
    return replace(plain, **fields)


def blamed(*ranks: RankStatus, world: int = 0) -> list[int] | None:
    """The ranks that are blamed; None: all is well."""
    verdict = diagnose_hang(ranks, world or len(ranks))
    return None if verdict is None else [one.rank for one in verdict.culprits]


def test_all_is_well() -> None:
    assert blamed(seen(0), seen(1)) is None
    assert blamed(world=2) is None


@pytest.mark.parametrize(
    ("state", "seconds", "found"),
    [
        ("T", 2.9, False),
        ("T", 3.1, True),
        ("Z", 3.1, True),
        ("", 6.9, False),
        ("", 7.1, True),
        ("R", 29.0, False),  # it holds the interpreter, or the machine is overloaded
        ("S", 31.0, True),
    ],
)
def test_a_silent_rank_is_found_as_soon_as_is_certain(state: str, seconds: float, found: bool) -> None:
    for phase in (STARTING, FIRST_STEP, DATA, STEP, SAVING):
        silent = seen(1, silent_seconds=seconds, state=state, phase=phase)
        assert blamed(seen(0), silent) == ([1] if found else None)
        assert blamed(silent, world=4) == ([1] if found else None)


def test_every_silent_rank_is_blamed_and_the_reason_is_told() -> None:
    verdict = diagnose_hang([seen(0, silent_seconds=8.0), seen(1), seen(2, silent_seconds=9.0)], 3)
    assert verdict is not None
    assert [one.rank for one in verdict.culprits] == [0, 2]
    assert "rank 0 (host host-0, pid 100, step 7, step)" in str(verdict)
    assert "not heard of for 8 s" in str(verdict)


@pytest.mark.parametrize("phase", [DATA, STEP])
def test_a_silent_rank_that_runs_is_stuck_when_all_others_wait_for_it(phase: str) -> None:
    """It may hold the interpreter's lock, so that its pulse cannot say where it is."""

    def silent(seconds: float) -> RankStatus:
        return seen(1, silent_seconds=seconds, state="R", phase=phase, waits=False)

    waiting = [seen(rank, phase_seconds=20.0) for rank in (0, 2)]
    assert blamed(waiting[0], silent(7.9), waiting[1]) is None
    assert blamed(waiting[0], silent(8.1), waiting[1]) == [1]
    assert blamed(waiting[0], silent(8.1), waiting[1], world=4) is None
    assert blamed(replace(waiting[0], waits=False), silent(8.1), waiting[1]) is None
    assert blamed(replace(waiting[0], phase_seconds=7.0), silent(8.1), waiting[1]) is None
    slow = replace(waiting[0], longest_seconds=6.0)
    assert blamed(slow, silent(11.9), waiting[1]) is None
    assert blamed(slow, silent(12.1), waiting[1]) == [1]
    assert blamed(replace(slow, longest_seconds=60.0), silent(31.0), waiting[1]) == [1]


def stuck(seconds: float, still: bool = False, **fields: Any) -> list[RankStatus]:
    """Rank 1 of three is at work in a step, the others wait, all for *seconds*."""
    return [seen(rank, phase_seconds=seconds, waits=rank != 1, still=still, **fields) for rank in range(3)]


@pytest.mark.parametrize("still", [False, True])
def test_who_works_on_while_all_others_wait_is_stuck(still: bool) -> None:
    """Heard half a second later and judged within another one: below 10 s."""
    assert blamed(*stuck(7.9, still)) is None
    assert blamed(*stuck(8.1, still)) == [1]
    assert blamed(*stuck(8.1, still)[:2], world=3) is None  # the third may be on its way


def test_long_steps_are_given_time_and_who_moves_is_given_more() -> None:
    assert blamed(*stuck(8.1, still=True, longest_seconds=4.0)) == [1]
    assert blamed(*stuck(19.9, still=True, longest_seconds=10.0)) is None
    assert blamed(*stuck(20.1, still=True, longest_seconds=10.0)) == [1]
    assert blamed(*stuck(39.0, longest_seconds=2.0)) is None
    assert blamed(*stuck(41.0, longest_seconds=2.0)) == [1]


@pytest.mark.parametrize("phase", [STARTING, FIRST_STEP, DATA, SAVING])
def test_nobody_is_stuck_who_waits_for_data_saves_or_compiles(phase: str) -> None:
    ranks = stuck(1000.0)
    assert blamed(ranks[0], replace(ranks[1], phase=phase), ranks[2]) is None


def test_who_alone_trains_keeps_nobody_waiting() -> None:
    assert blamed(seen(0, phase_seconds=1000.0, waits=False)) is None


def test_ranks_that_all_work_are_not_stuck() -> None:
    assert blamed(*(seen(rank, phase_seconds=1000.0, waits=False) for rank in range(2))) is None


def test_ranks_that_all_wait_for_each_other_are_ended_without_blame() -> None:
    assert blamed(seen(0, phase_seconds=59.0), seen(1, phase_seconds=59.0)) is None
    assert blamed(seen(0, phase_seconds=61.0), seen(1, phase_seconds=61.0)) == []
