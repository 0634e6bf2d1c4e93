"""torch.distributed: process groups beside training, objects and numbers exchanged, full tensors gathered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.base.errors import FailedError
from pipeline.base.world import Collective, SingleProcess, World
from pipeline.checkpoints.state import Fragment
from pipeline.train.train_state import Shapes

# Beyond the patience: a rank that dies is known by its connection, one that hangs by the heartbeat.
_MARGIN = timedelta(days=7)
_LONGEST = timedelta(days=365)  # a clock that counts nanoseconds cannot add much more

_Span = tuple[str, int, int, int]  # of a parameter: its name, start, stop, and the rank that has these elements


def new_group(patience_seconds: float) -> dist.ProcessGroup | None:
    """A gloo group of all ranks, for what goes on beside training; None for a process alone. Every rank has to call it.

    A rank may wait in it for one whose store takes *patience_seconds* and more: training says when that is too long,
    by a typed error (gloo's own limit is half an hour, and its error says nothing).
    """
    if not dist.is_initialized():
        return None
    patience = timedelta(seconds=min(patience_seconds, _LONGEST.total_seconds()))
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=min(patience + _MARGIN, _LONGEST))
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
    return ProcessGroup(World.from_environment()) if dist.is_initialized() else SingleProcess()


class AsyncAllReduce:
    """What all ranks agree on at each step, at the price of a message that nobody waits for.

    Each rank gives *count* numbers at the end of a step and learns, at the end of the next, the largest that any rank
    gave: by then every rank has been here, so the answer is there. So all ranks decide alike, one step late. Every rank
    makes it, and makes the same calls in the same order. *patience_seconds*: see ``new_group``.
    """

    def __init__(self, count: int, patience_seconds: float = 0.0) -> None:
        self._group = new_group(patience_seconds)
        self._work: dist.Work | None = None
        self._values = torch.zeros(count, dtype=torch.float64)
        self._is_pending = False

    def exchange(self, values: Sequence[float]) -> list[float] | None:
        """Hand in *values*; the largest of all ranks' numbers of the call before, None at the first call."""
        before = self._take()
        self._values.copy_(torch.tensor(values, dtype=torch.float64))
        self._is_pending = True
        if self._group is not None:
            self._work = dist.all_reduce(self._values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return before

    def finish(self) -> list[float] | None:
        """The answer to the last call. Waits for the slowest rank."""
        return self._take()

    def _take(self) -> list[float] | None:
        if not self._is_pending:
            return None
        if self._work is not None:
            self._work.wait()
            self._work = None
        self._is_pending = False
        return self._values.tolist()


def gather_full_state(
    fragments: Sequence[Fragment],
    shapes: Shapes,
    kind: str,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor] | None:
    """Every parameter of *shapes* in full, in its order, on the first rank of *group*; None on the others.

    Beyond the result one fragment at a time is on its way, straight to its position; a parameter that the first rank
    has in full is a view of its fragment. All ranks call it. *group* None: this process alone has all. It may run in a
    thread beside training, on copies of the fragments and a group of its own.

    Raises FailedError, on all ranks alike, when the fragments of *kind* do not cover every parameter exactly once.
    """
    own = {(fragment.name, fragment.start): fragment for fragment in fragments if fragment.kind == kind}
    rank = dist.get_rank(group) if group is not None else 0
    spans = [(name, start, fragment.stop, rank) for (name, start), fragment in own.items()]
    plan = _spans_by_name(_all_spans(kind, spans, group), shapes, kind)
    if rank == 0:
        return {name: _receive(plan[name], shape, own, group) for name, shape in shapes.items()}
    for name in shapes:
        for _, start, _, holder in plan[name]:
            if holder == rank:
                dist.send(own[name, start].values.cpu().contiguous(), group=group, group_dst=0)
    return None


def _all_spans(kind: str, spans: list[_Span], group: dist.ProcessGroup | None) -> list[_Span]:
    """The spans of all ranks. Raises FailedError when the ranks do not gather the same kind at the same time."""
    if group is None:
        return spans
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, (kind, spans), group=group)
    kinds = sorted({rank_kind for rank_kind, _ in ranks})
    if len(kinds) > 1:
        raise FailedError(f"the ranks assemble different kinds: {', '.join(kinds)}")
    return [span for _, rank_spans in ranks for span in rank_spans]


def _spans_by_name(spans: list[_Span], shapes: Shapes, kind: str) -> dict[str, list[_Span]]:
    """The spans of each parameter, in order. Raises FailedError when they leave a gap or overlap."""
    plan: dict[str, list[_Span]] = {name: [] for name in shapes}
    for span in sorted(span for span in spans if span[0] in plan):
        plan[span[0]].append(span)
    for name, parts in plan.items():
        reached = 0
        for _, start, stop, _ in parts:
            if start != reached:
                raise FailedError(f"{kind} of {name}: element {min(start, reached)} is on no rank, or on two")
            reached = stop
        if reached != prod(shapes[name]):
            raise FailedError(f"{kind} of {name}: the ranks hold {reached} of its {prod(shapes[name])} elements")
    return plan


def _receive(
    spans: list[_Span],
    shape: tuple[int, ...],
    own: dict[tuple[str, int], Fragment],
    group: dist.ProcessGroup | None,
) -> Tensor:
    """One parameter in full, on the first rank."""
    if len(spans) == 1 and spans[0][3] == 0:
        return own[spans[0][0], 0].values.view(shape).cpu()
    flat = torch.empty(prod(shape), dtype=torch.float32)
    for name, start, stop, holder in spans:
        if holder == 0:
            flat[start:stop].copy_(own[name, start].values)
        else:
            dist.recv(flat[start:stop], group=group, group_src=holder)
    return flat.view(shape)
