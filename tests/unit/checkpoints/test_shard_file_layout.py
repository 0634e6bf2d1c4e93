"""Fragments have to cover the state: all of it, each element once."""

from __future__ import annotations

import pytest

from pipeline.base.world import World
from pipeline.checkpoints.shard_file import FragmentRange, cover_problem, expected_files, fragment_range
from tests.support.states import SHAPES, Cut, State

TWO = {"a": (2, 5), "b": (4,)}


@pytest.mark.parametrize("cut", ["flat", "each"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 40])
def test_however_many_ranks_cut_it_it_is_covered(cut: Cut, size: int) -> None:
    held = {
        f"rank {rank}": [fragment_range(fragment) for fragment in State(World(rank, size), cut).fragments()]
        for rank in range(size)
    }
    assert cover_problem(SHAPES, held) is None
    for rank in held:
        if held[rank]:
            without = {name: pieces for name, pieces in held.items() if name != rank}
            assert "in no file" in str(cover_problem(SHAPES, without))


def pieces(*rows: tuple[str, str, int, int]) -> list[FragmentRange]:
    return [FragmentRange(*row) for row in rows]


WHOLE = [("weight", "a", 0, 10), ("weight", "b", 0, 4)]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"x": pieces(*WHOLE)}, None),
        ({"x": pieces(("weight", "a", 0, 6), WHOLE[1]), "y": pieces(("weight", "a", 6, 10))}, None),
        (
            {"x": pieces(("weight", "a", 0, 6), WHOLE[1]), "y": pieces(("weight", "a", 5, 10))},
            "weight of a: elements 5..6 are in both x and y",
        ),
        (
            {"x": pieces(("weight", "a", 0, 6), WHOLE[1]), "y": pieces(("weight", "a", 7, 10))},
            "weight of a: elements 6..7 are in no file",
        ),
        ({"x": pieces(("weight", "a", 0, 9), WHOLE[1])}, "weight of a: elements 9..10 are in no file"),
        ({"x": pieces(*WHOLE, ("weight", "a", 10, 11))}, "weight of a: elements 10..11 in x are beyond its end"),
        ({"x": pieces(*WHOLE), "y": pieces(WHOLE[1])}, "weight of b: elements 0..4 are in both x and y"),
        ({"x": pieces(*WHOLE, ("weight", "c", 0, 1))}, "x holds weight of c, which the model does not have"),
        ({"x": pieces(*WHOLE, ("ema", "a", 0, 10))}, "ema of b: elements 0..4 are in no file"),
        ({"x": []}, "weight of a: elements 0..10 are in no file"),
    ],
)
def test_what_is_wrong_is_told(held: dict[str, list[FragmentRange]], said: str | None) -> None:
    assert cover_problem(TWO, held) == said


def test_a_file_of_each_rank_is_expected() -> None:
    assert sorted(expected_files(3)) == [f"rank-0000{rank}.safetensors" for rank in range(3)]
