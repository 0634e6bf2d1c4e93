"""ActorPool: Ray actors that call the functions of ``worker.py``. The only module of this folder that imports ray.

One controller with a pool, not one Ray job per evaluation: a job supervisor takes about 85 MB and seconds to start.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.base.cluster_head import ClusterHead
from pipeline.base.errors import FailedError, VitpipeError

_MAX_FAILED_STARTS = 20  # actors in a row that never came up
_HEAD_SECONDS = 30.0  # without the cluster's head, before that is the end: ray itself ends the process after 60
_PAUSE_SECONDS = 1.0  # before an actor takes the place of one that did not come up


@dataclass(frozen=True)
class PoolLimits:
    """How much of the cluster a pool may take: at most *size* actors, and what each of them reserves."""

    size: int
    cpus: float
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerLost:
    """The worker went away before the call returned."""

    reason: str


@dataclass(frozen=True)
class CallEnded:
    """A call that has returned: the work that it was started for, and what it returned, the error it raised, or
    WorkerLost."""

    work: Hashable
    outcome: Any


class ActorPool:
    """Calls functions in actors and survives their death. Actors are made when there is work, and ended after it.

    Work is given only to actors that are up: one that waits for room in the cluster holds nothing.
    """

    def __init__(self, limits: PoolLimits) -> None:
        options = {"num_cpus": limits.cpus, "num_gpus": limits.gpus, "resources": dict(limits.resources) or None}
        self._make_actor = ray.remote(_Worker).options(**options).remote
        self._size = limits.size
        self._idle: deque[tuple[Any, str]] = deque()  # (actor, what it has warm)
        self._starting: dict[Any, Any] = {}  # by the call that returns when it is up: the actor
        self._running: dict[Any, tuple[Any, str, Hashable]] = {}  # by call: (actor, what it has warm, work)
        self._failed_starts, self._not_before = 0, 0.0
        self._head = ClusterHead(str(ray.get_runtime_context().gcs_address), _HEAD_SECONDS)

    @property
    def num_idle(self) -> int:
        """Actors that are up and have nothing to do."""
        return len(self._idle)

    @property
    def num_running(self) -> int:
        """Calls that have not returned."""
        return len(self._running)

    @property
    def is_starting(self) -> bool:
        """True while actors are coming up, or wait for room in the cluster."""
        return bool(self._starting)

    def check_head(self) -> str:
        """A message about the cluster's head, when its state has changed; else "".

        Raises InterruptedRunError once it has been away for long: ray would end this process soon, without a message.
        """
        return self._head.check()

    def scale_to(self, num_calls: int) -> None:
        """There is work for so many actors, the busy ones included: make more, or end idle ones."""
        if self._head.is_away:
            return  # nobody places actors, and nobody ends them
        target = min(num_calls, self._size)
        while len(self._running) + len(self._idle) + len(self._starting) > target and (self._idle or self._starting):
            actor = self._idle.pop()[0] if self._idle else self._starting.popitem()[1]
            ray.kill(actor)
        while len(self._running) + len(self._idle) + len(self._starting) < target:
            if time.monotonic() < self._not_before:
                return
            actor = self._make_actor()
            self._starting[actor.ready.remote()] = actor

    def start(self, work: Hashable, warm: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Call ``function(*arguments)`` in an idle actor, if possible in one whose last call had the same *warm*."""
        chosen = next((index for index, (_, last) in enumerate(self._idle) if last == warm), 0)
        actor, _ = self._idle[chosen]
        del self._idle[chosen]
        self._running[actor.call.remote(function, *arguments)] = (actor, warm, work)

    def wait(self, seconds: float) -> list[CallEnded]:
        """The calls that have returned, after at most *seconds* of waiting for the first."""
        refs = [*self._running, *self._starting]
        if not refs:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(refs, num_returns=1, timeout=seconds)
        if done:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)  # and all others that have returned
        return [ended for ref in done if (ended := self._collect(ref)) is not None]

    def stop(self, work: Hashable) -> None:
        """End the actor that does *work*; its call is not returned by ``wait``."""
        for ref, (actor, _, running) in list(self._running.items()):
            if running == work:
                del self._running[ref]
                ray.kill(actor)

    def close(self) -> None:
        """End the actors."""
        actors = [actor for actor, _ in self._idle] + list(self._starting.values())
        for actor in actors + [actor for actor, _, _ in self._running.values()]:
            if not self._head.is_away:  # they end with it
                with suppress(RayError):
                    ray.kill(actor)
        self._idle.clear()
        self._starting.clear()
        self._running.clear()

    def _collect(self, ref: Any) -> CallEnded | None:
        if ref in self._starting:
            self._add_started(ref)
            return None
        actor, warm, work = self._running.pop(ref)
        try:
            outcome = ray.get(ref)
        except RayError as error:
            return CallEnded(work, WorkerLost(f"its worker went away ({type(error).__name__})"))
        self._idle.append((actor, warm))
        return CallEnded(work, outcome)

    def _add_started(self, ref: Any) -> None:
        """The actor is up, or did not come up. Raises FailedError after many in a row that did not."""
        actor = self._starting.pop(ref)
        try:
            ray.get(ref)
        except RayError as error:
            self._failed_starts += 1
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            if self._failed_starts >= _MAX_FAILED_STARTS:
                reason = str(error).strip().splitlines()[0]
                raise FailedError(f"workers do not come up: {type(error).__name__}: {reason}") from None
            return
        self._failed_starts = 0
        self._idle.append((actor, ""))


class _Worker:
    """The actor: calls functions that it is sent, and keeps imports and the last networks warm in its process."""

    def ready(self) -> bool:
        """True: it is up."""
        return True

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what *function* returns, or the typed error it raises, as a value."""
        try:
            return function(*arguments)
        except VitpipeError as error:
            return error
        except Exception as error:  # whatever it is, it is this evaluation's
            return FailedError(f"{type(error).__name__}: {error}")


def cluster_resources() -> dict[str, float]:
    """The resources of all nodes of the cluster that ray is connected to, by name."""
    return {name: float(amount) for name, amount in ray.cluster_resources().items()}
