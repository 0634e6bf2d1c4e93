"""Ranks as named counts."""

from __future__ import annotations

import pytest

from pipeline.base.world import World, allowed_world_sizes

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def test_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment() == World() == World(0, 1, 0, 1)
    assert World().is_first


def test_one_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, "8824", strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="impossible world"):
        World.from_environment()
    monkeypatch.setenv("RANK", "5")
    world = World.from_environment()
    assert world == World(rank=5, size=8, local_rank=2, local_size=4)
    assert not world.is_first


@pytest.mark.parametrize("counts", [(1, 1, 0, 1), (-1, 2, 0, 1), (0, 0, 0, 1), (0, 2, 1, 1), (0, 1, -1, 1)])
def test_impossible_worlds(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible world"):
        World(*counts)


def test_allowed_world_sizes_are_the_divisors() -> None:
    assert allowed_world_sizes(12) == [1, 2, 3, 4, 6, 12]
    assert allowed_world_sizes(1) == [1]
    assert allowed_world_sizes(7) == [1, 7]
