"""Object exchange over torch.distributed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipeline.base.collective import Alone, Collective
from pipeline.base.world import World

_BESIDES = timedelta(days=7)  # a rank that dies is known by its connection, one that hangs by the heartbeat
_LONGEST = timedelta(days=365)  # a clock that counts nanoseconds cannot add much more


def new_group(patience_seconds: float) -> dist.ProcessGroup | None:
    """A gloo group of all ranks, for what goes on beside training; None for a process alone. Every rank has to call it.

    A rank may wait in it for one whose store takes *patience_seconds* and more: training says when that is too long,
    by a typed error (gloo's own limit is half an hour, and its error says nothing).
    """
    if not dist.is_initialized():
        return None
    patience = timedelta(seconds=min(patience_seconds, _LONGEST.total_seconds()))
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=min(patience + _BESIDES, _LONGEST))
    return group


class ProcessGroup:
    """The Collective of *group*, or of the default process group."""

    def __init__(self, world: World, group: dist.ProcessGroup | None = None) -> None:
        self.world, self._group = world, group

    def gather(self, value: Any) -> list[Any]:
        """See Collective."""
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: Any) -> Any:
        """See Collective."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]


def current_collective() -> Collective:
    """Of the process group when there is one, else of this process alone."""
    return ProcessGroup(World.from_environment()) if dist.is_initialized() else Alone()
