"""What ranks say to each other, as a protocol, so that code which needs it can run in one process as well."""

from __future__ import annotations

from typing import Any, Protocol

from pipeline.base.world import World


class Collective(Protocol):
    """Object exchange among the ranks of a world. Every rank has to make the same calls in the same order."""

    @property
    def world(self) -> World:
        """This process's place."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's *value*, in the order of ranks, on every rank."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's *value*, on every rank."""


class Alone:
    """The Collective of a single process."""

    world = World()

    def gather(self, value: Any) -> list[Any]:
        """See Collective."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """See Collective."""
        return value
