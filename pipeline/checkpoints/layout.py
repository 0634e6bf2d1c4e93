"""The files of a checkpoint, and how the fragments in them have to cover the state: all of it, each element once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.checkpoints.fragments import WEIGHT


@dataclass(frozen=True, order=True)
class Piece:
    """Elements ``start .. stop`` of the flattened *kind* of parameter *name*."""

    kind: str
    name: str
    start: int
    stop: int


def rank_file(rank: int) -> str:
    """The name of what *rank* writes."""
    return f"rank-{rank:05d}.safetensors"


def expected_files(world_size: int) -> set[str]:
    """Every file that the ranks together must have written."""
    return {rank_file(rank) for rank in range(world_size)}


def cover_problem(shapes: Mapping[str, tuple[int, ...]], held: Mapping[str, Iterable[Piece]]) -> str | None:
    """The first reason why the pieces *held*, by file, are not every element of every kind exactly once; else None.

    A kind that is there at all has to be there for every parameter, and the weights have to be there.
    """
    by_state: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
    for file, pieces in held.items():
        for piece in pieces:
            by_state[piece.kind, piece.name].append((piece.start, piece.stop, file))
    for kind, name in sorted(by_state):
        if name not in shapes:
            return f"{by_state[kind, name][0][2]} holds {kind} of {name}, which the model does not have"
    kinds = {kind for kind, _ in by_state} | {WEIGHT}
    for kind in sorted(kinds):
        for name, shape in shapes.items():
            problem = _gap(by_state.get((kind, name), []), math.prod(shape))
            if problem:
                return f"{kind} of {name}: {problem}"
    return None


def _gap(spans: list[tuple[int, int, str]], total: int) -> str | None:
    reached, last = 0, ""
    for start, stop, file in sorted(spans):
        if start < reached:
            return f"elements {start}..{min(stop, reached)} are in both {last} and {file}"
        if start > reached:
            return f"elements {reached}..{start} are in no file"
        reached, last = stop, file
    if reached > total:
        return f"elements {total}..{reached} in {last} are beyond its end"
    return f"elements {reached}..{total} are in no file" if reached < total else None
