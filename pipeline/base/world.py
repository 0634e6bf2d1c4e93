"""World: the named counts of a distributed job. The only module that reads RANK and its kin."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Who this process is among ``size`` ranks on ``size // local_size`` nodes or so."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size or not 0 <= self.local_rank < self.local_size:
            raise ValueError(f"impossible world: {self}")

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes cards and metrics."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> World:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; a single process when they are not set."""
        read = os.environ.get
        return cls(
            rank=int(read("RANK", "0")),
            size=int(read("WORLD_SIZE", "1")),
            local_rank=int(read("LOCAL_RANK", "0")),
            local_size=int(read("LOCAL_WORLD_SIZE", "1")),
        )


def allowed_world_sizes(partitions: int) -> list[int]:
    """World sizes that divide *partitions*, the only ones at which global batches stay the same."""
    return [size for size in range(1, partitions + 1) if partitions % size == 0]
