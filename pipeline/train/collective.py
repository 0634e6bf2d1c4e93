"""Object exchange over torch.distributed."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from pipeline.base.collective import Alone, Collective
from pipeline.base.world import World


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
