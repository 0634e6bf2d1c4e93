"""Whole float32 tensors on the first rank, from the fragments of all ranks.

It talks through the process group it is given and may so run in a thread beside training, on copies of the fragments
and a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.base.errors import FailedError
from pipeline.checkpoints.fragments import Fragment
from pipeline.train.pieces import Shapes

_Span = tuple[str, int, int, int]  # name, start, stop, rank


def assembled(
    fragments: Sequence[Fragment],
    shapes: Mapping[str, tuple[int, ...]] | Shapes,
    kind: str,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor] | None:
    """Every parameter of *shapes*, whole, in its order, on the first rank of *group*; None on the others.

    Beyond the result one fragment at a time is on its way, straight to its place; a parameter that the first rank
    has whole is a view of its fragment. All ranks call it. *group* None: this process alone has all.

    Raises FailedError, on all ranks alike, when the fragments of *kind* do not cover every parameter exactly once.
    """
    own = {(fragment.name, fragment.start): fragment for fragment in fragments if fragment.kind == kind}
    rank = dist.get_rank(group) if group is not None else 0
    spans = [(name, start, fragment.stop, rank) for (name, start), fragment in own.items()]
    plan = _planned(_gathered(kind, spans, group), shapes, kind)
    if rank == 0:
        return {name: _whole(plan[name], shape, own, group) for name, shape in shapes.items()}
    for name in shapes:
        for _, start, _, holder in plan[name]:
            if holder == rank:
                dist.send(own[name, start].values.cpu().contiguous(), group=group, group_dst=0)
    return None


def _gathered(kind: str, spans: list[_Span], group: dist.ProcessGroup | None) -> list[_Span]:
    """The spans of all ranks. Raises FailedError when these are not asked for the same kind at the same time."""
    if group is None:
        return spans
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (kind, spans), group=group)
    kinds = sorted({theirs for theirs, _ in everyone})
    if len(kinds) > 1:
        raise FailedError(f"the ranks assemble different kinds: {', '.join(kinds)}")
    return [span for _, theirs in everyone for span in theirs]


def _planned(spans: list[_Span], shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, list[_Span]]:
    """The spans of each parameter, in order. Raises FailedError when they leave a gap or overlap."""
    plan: dict[str, list[_Span]] = {name: [] for name in shapes}
    for span in sorted(span for span in spans if span[0] in plan):
        plan[span[0]].append(span)
    for name, theirs in plan.items():
        reached = 0
        for _, start, stop, _ in theirs:
            if start != reached:
                raise FailedError(f"{kind} of {name}: element {min(start, reached)} is on no rank, or on two")
            reached = stop
        if reached != prod(shapes[name]):
            raise FailedError(f"{kind} of {name}: the ranks hold {reached} of its {prod(shapes[name])} elements")
    return plan


def _whole(
    spans: list[_Span],
    shape: tuple[int, ...],
    own: dict[tuple[str, int], Fragment],
    group: dist.ProcessGroup | None,
) -> Tensor:
    """One parameter on the first rank."""
    if len(spans) == 1 and spans[0][3] == 0:
        return own[spans[0][0], 0].values.view(shape).cpu()
    flat = torch.empty(prod(shape), dtype=torch.float32)
    for name, start, stop, holder in spans:
        if holder == 0:
            flat[start:stop].copy_(own[name, start].values)
        else:
            dist.recv(flat[start:stop], group=group, group_src=holder)
    return flat.view(shape)
