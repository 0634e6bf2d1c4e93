"""A pool of Ray actors does the work. The only module here that imports ray.

One controller with a pool, not one Ray job per evaluation: a job supervisor takes about 85 MB and seconds to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from pipeline.base.errors import VitpipeError

Item = TypeVar("Item")


class _Worker:
    """Calls functions it is sent; keeps its process, and so its imports, warm."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what *function* returns, or the typed error it raises, as a value."""
        try:
            return function(*arguments)
        except VitpipeError as error:
            return error


class Pool:
    """Runs a function over items, at most *size* at a time, and survives the death of its actors."""

    def __init__(self, size: int, num_cpus: float, num_gpus: float) -> None:
        self._make = ray.remote(_Worker).options(num_cpus=num_cpus, num_gpus=num_gpus).remote
        self._idle = [self._make() for _ in range(size)]

    def run(self, items: list[Item], function: Callable[..., Any], *arguments: Any) -> Iterator[tuple[Item, Any]]:
        """(item, what ``function(*arguments, item)`` returned or the error that ended it), as they get done."""
        waiting = list(reversed(items))
        running: dict[Any, tuple[Any, Item]] = {}
        while waiting or running:
            while waiting and self._idle:
                worker, item = self._idle.pop(), waiting.pop()
                running[worker.call.remote(function, *arguments, item)] = (worker, item)
            done, _ = ray.wait(list(running), num_returns=1)
            worker, item = running.pop(done[0])
            try:
                outcome = ray.get(done[0])
                self._idle.append(worker)
            except RayError as error:
                outcome = error
                self._idle.append(self._make())
            yield item, outcome

    def close(self) -> None:
        """End the actors."""
        for worker in self._idle:
            ray.kill(worker)
