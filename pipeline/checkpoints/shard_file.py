"""A rank's safetensors file, and how the files of all ranks cover the state: all of it, each element once."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.base.errors import DamageError
from pipeline.checkpoints.state import WEIGHT, Fragment
from pipeline.records.record import Record

LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header, little-endian
_ALIGNMENT = 8  # of the data, by the format; spaces fill the header up
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_ELEMENT_BYTES = 4  # float32


@dataclass(frozen=True, order=True)
class FragmentRange:
    """Elements ``start .. stop`` of the flattened *kind* of parameter *name*."""

    kind: str
    name: str
    start: int
    stop: int


def rank_file(rank: int) -> str:
    """The name of the file that *rank* writes."""
    return f"rank-{rank:05d}.safetensors"


def expected_files(world_size: int) -> set[str]:
    """Every file that the ranks together must have written."""
    return {rank_file(rank) for rank in range(world_size)}


def cover_problem(shapes: Mapping[str, tuple[int, ...]], written: Mapping[str, Iterable[FragmentRange]]) -> str | None:
    """The first reason why the ranges *written*, by file, are not every element of every kind exactly once; else None.

    A kind that is there at all has to be there for every parameter, and the weights have to be there.
    """
    by_state: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
    for file, pieces in written.items():
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


class RankState(Record):
    """Which rank's file it is, of which checkpoint. ``shapes`` are of the complete parameters."""

    format: Literal["vitpipe-fragments-1"] = "vitpipe-fragments-1"
    run: str
    step: int
    attempt: str
    rank: int
    world_size: int
    updates: int
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class RankHeader:
    """The header of a file: whose it is, and where in the file each range begins (byte offsets)."""

    state: RankState
    offsets: dict[FragmentRange, int]


def fragment_range(fragment: Fragment) -> FragmentRange:
    """The elements that *fragment* has."""
    return FragmentRange(fragment.kind, fragment.name, fragment.start, fragment.start + fragment.values.numel())


def pack_header(state: RankState, pieces: list[FragmentRange]) -> bytes:
    """Everything of the file but its numbers, which follow in the order of *pieces*."""
    tree: dict[str, Any] = {"__metadata__": {"state": state.model_dump_json()}}
    offset = 0
    for piece in pieces:
        count = piece.stop - piece.start
        end = offset + count * _ELEMENT_BYTES
        tree[f"{piece.kind}:{piece.name}:{piece.start}"] = {
            "dtype": "F32",
            "shape": [count],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def header_length(data: bytes, num_bytes: int, source_name: str) -> int:
    """Bytes of the header with its length, from the first ones of a file of *num_bytes*. Raises DamageError."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, num_bytes - LENGTH_BYTES):
        raise DamageError(f"{source_name}: it is cut, or no safetensors file")
    return LENGTH_BYTES + length


def parse_header(data: bytes, num_bytes: int, source_name: str) -> RankHeader:
    """The header at the start of *data*, of a file of *num_bytes*.

    Raises DamageError, naming *source_name*, unless the tensors lie one after the other, without overlap or gap, to the
    end of the file.
    """
    begin = header_length(data, num_bytes, source_name)
    try:
        tree = json.loads(data[LENGTH_BYTES:begin], object_pairs_hook=_without_repeats)
        state = RankState.model_validate_json(tree.pop("__metadata__")["state"])
        spans = sorted((*row["data_offsets"], name, row) for name, row in tree.items())
        offsets: dict[FragmentRange, int] = {}
        reached = 0
        for start, end, name, row in spans:
            piece = _piece(name, row)
            if start != reached or end != start + (piece.stop - piece.start) * _ELEMENT_BYTES:
                raise ValueError(f"tensor {name!r} is at bytes {start}..{end}, not from {reached} on")
            offsets[piece], reached = begin + start, end
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DamageError(f"{source_name}: its header: {first['loc']}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{source_name}: its header is damaged ({error})") from None
    if begin + reached != num_bytes:
        raise DamageError(f"{source_name}: its header tells of {begin + reached} bytes, it has {num_bytes}")
    return RankHeader(state, offsets)


def _piece(name: str, row: dict[str, Any]) -> FragmentRange:
    kind, _, rest = name.partition(":")
    parameter, _, start = rest.rpartition(":")
    (count,) = row["shape"]
    if row["dtype"] != "F32" or int(start) < 0 or count < 1 or set(row) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is no fragment")
    return FragmentRange(kind, parameter, int(start), int(start) + count)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands in it twice")
    return dict(pairs)
