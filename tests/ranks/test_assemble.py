"""Whole tensors from fragments on three real ranks, in a thread beside the collectives of the training group."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.base.errors import FailedError
from pipeline.checkpoints.state import EMA, WEIGHT, Fragment
from pipeline.train.distributed import gather_full_state
from tests.support.ranks import spawn_ranks

SHAPES = {"b": (7, 3), "a": (5,), "scalar": (), "c": (1, 11)}
VALUES = {name: torch.arange(100.0 * at, 100.0 * at + prod(shape)) for at, (name, shape) in enumerate(SHAPES.items())}
# (rank, name, start, stop): out of order, parts of unequal length, a parameter of one rank alone
SPREAD = [(2, "b", 0, 5), (0, "b", 5, 6), (1, "b", 6, 21), (1, "a", 0, 5), (2, "scalar", 0, 1), (0, "c", 0, 11)]


def fragments_of(rank: int, spread: list[tuple[int, str, int, int]], kind: str = WEIGHT) -> list[Fragment]:
    """Those of *rank*."""
    sign = -1.0 if kind == EMA else 1.0
    return [
        Fragment(kind, name, start, sign * VALUES[name][start:stop])
        for holder, name, start, stop in spread
        if holder == rank
    ]


def beside_training() -> dict[str, Any]:
    """On a rank: both kinds assembled in a thread through a group of its own, while the main thread reduces."""
    rank = dist.get_rank()
    own = dist.new_group(backend="gloo")
    fragments = fragments_of(rank, SPREAD) + fragments_of(rank, SPREAD, EMA)
    found: dict[str, Any] = {}

    def work() -> None:
        for _ in range(20):
            for kind in (WEIGHT, EMA):
                found[kind] = gather_full_state(fragments, SHAPES, kind, own)

    thread = threading.Thread(target=work)
    thread.start()
    sums = []
    while True:
        tensor = torch.full((3,), float(rank))
        busy = torch.tensor([float(thread.is_alive())])  # of any rank: all have to stop at the same reduction
        dist.all_reduce(tensor)
        dist.all_reduce(busy)
        sums.append(tensor)
        if not busy.item() and len(sums) >= 5:
            break
    thread.join()
    assert all(torch.equal(tensor, torch.full((3,), 3.0)) for tensor in sums)
    return found


def broken() -> list[str]:
    """On a rank: what is said of a gap, an overlap, a missing end and a missing parameter; none of it hangs."""
    said = []
    spoilt = [
        [*SPREAD[:1], *SPREAD[2:]],
        [*SPREAD, (0, "b", 4, 6)],
        [*SPREAD[:2], (1, "b", 6, 20), *SPREAD[3:]],
        [row for row in SPREAD if row[1] != "scalar"],
    ]
    for spread in spoilt:
        with pytest.raises(FailedError) as caught:
            gather_full_state(fragments_of(dist.get_rank(), spread), SHAPES, WEIGHT, dist.group.WORLD)
        said.append(str(caught.value))
    with pytest.raises(FailedError, match="the ranks assemble different kinds: ema, weight"):
        gather_full_state([], SHAPES, EMA if dist.get_rank() else WEIGHT, dist.group.WORLD)
    return said


def on_three_ranks() -> tuple[dict[str, Any], list[str]]:
    """Both."""
    return beside_training(), broken()


@pytest.fixture(scope="module")
def three() -> list[tuple[dict[str, Any], list[str]]]:
    """What each of three ranks found."""
    return spawn_ranks(on_three_ranks, 3)


def test_only_the_first_rank_has_the_whole_tensors(three: list[Any]) -> None:
    first, *others = (found for found, _ in three)
    assert others == [{WEIGHT: None, EMA: None}] * 2
    for kind, sign in ((WEIGHT, 1.0), (EMA, -1.0)):
        assert list(first[kind]) == list(SHAPES)
        for name, tensor in first[kind].items():
            assert tensor.shape == SHAPES[name]
            assert torch.equal(tensor.reshape(-1), sign * VALUES[name])


def test_what_does_not_cover_is_named_on_all_ranks(three: list[Any]) -> None:
    for _, (gap, overlap, short, missing) in three:
        assert gap == "weight of b: element 5 is on no rank, or on two"
        assert overlap == "weight of b: element 4 is on no rank, or on two"
        assert short == "weight of b: the ranks hold 20 of its 21 elements"
        assert missing == "weight of scalar: the ranks hold 0 of its 1 elements"


def test_alone_nothing_is_copied() -> None:
    fragments = [Fragment(WEIGHT, name, 0, values) for name, values in VALUES.items()]
    whole = gather_full_state(fragments, SHAPES, WEIGHT)
    assert whole is not None
    for name, tensor in whole.items():
        assert tensor.shape == SHAPES[name]
        assert tensor.data_ptr() == VALUES[name].data_ptr()
