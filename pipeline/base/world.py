"""World: the named counts of a distributed job, and exchange among its ranks. The only module that reads RANK."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.base.errors import DamageError, FailedError

Value = TypeVar("Value")
_DAMAGE = (DamageError, FileNotFoundError)  # of a file in a store: the callers name it and go on


@dataclass(frozen=True)
class World:
    """Which rank this process is, among ``size`` ranks on about ``size // local_size`` nodes."""

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


class Collective(Protocol):
    """Object exchange among the ranks of a world. Every rank has to make the same calls in the same order."""

    @property
    def world(self) -> World:
        """The rank of this process."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's *value*, in the order of ranks, on every rank."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's *value*, on every rank."""


class SingleProcess:
    """The Collective of a single process."""

    world = World()

    def gather(self, value: Any) -> list[Any]:
        """See Collective."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """See Collective."""
        return value


def run_on_all(collective: Collective, action: Callable[[], Value]) -> tuple[list[Value], list[str]]:
    """Call *action* on every rank: (what each returned, which damage each met), the same on every rank.

    Any other error of one rank is raised on all, so that none waits for a rank that has left.
    """
    outcome: Value | BaseException
    try:
        outcome = action()
    except Exception as error:
        outcome = _portable(error)
    outcomes = collective.gather(outcome)
    errors = [result for result in outcomes if isinstance(result, Exception) and not isinstance(result, _DAMAGE)]
    if errors:
        raise errors[0]
    damages = [str(result) for result in outcomes if isinstance(result, _DAMAGE)]
    values = [result for result in outcomes if not isinstance(result, Exception)]
    return values, list(dict.fromkeys(damages))


def run_on_first(collective: Collective, action: Callable[[], Value]) -> tuple[Value | None, list[str]]:
    """Call *action* on rank 0: (what it returned, which damage it met), on every rank. Its error is raised on all."""
    outcome: Value | BaseException | None = None
    if collective.world.is_first:
        try:
            outcome = action()
        except Exception as error:
            outcome = _portable(error)
    outcome = collective.broadcast(outcome)
    if isinstance(outcome, _DAMAGE):
        return None, [str(outcome)]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, []  # type: ignore[return-value]


def _portable(error: Exception) -> Exception:
    """*error*, or a FailedError with its text when other processes may not be able to unpickle it."""
    known = type(error).__module__.startswith(("pipeline.", "builtins"))
    return error if known else FailedError(f"{type(error).__name__}: {error}")
