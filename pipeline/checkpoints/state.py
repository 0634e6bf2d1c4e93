"""What a checkpoint is made of: contiguous fragments of the flattened float32 state of named parameters.

Which rank had which fragment is of no meaning, so a checkpoint depends on neither world size nor ZeRO stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Kinds of state. Those of the optimizer are as torch names them: "exp_avg", "momentum_buffer", ...
WEIGHT = "weight"  # the float32 weights
EMA = "ema"  # the moving average of the weights, where the recipe keeps one


@dataclass(frozen=True)
class Fragment:
    """*values*, float32 (n,): elements ``start .. start + n`` of the flattened *kind* of parameter *name*."""

    kind: str
    name: str
    start: int
    values: Tensor

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + self.values.numel()


class FragmentReader(Protocol):
    """The state at one checkpoint, whoever wrote it."""

    @property
    def updates(self) -> int:
        """How many updates the optimizer had done (Adam's ``step``)."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of every trained parameter, by name."""

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """float32 (stop - start,): elements ``start .. stop`` of the flattened *kind* of parameter *name*."""


class FragmentSource(Protocol):
    """What can be saved: an engine, or a snapshot of one. All ranks' fragments together are the whole state."""

    @property
    def updates(self) -> int:
        """How many updates the optimizer has done."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of every trained parameter, by name; the same on every rank."""

    def fragments(self) -> list[Fragment]:
        """This rank's part of the state."""


class Restorable(FragmentSource, Protocol):
    """What can be saved and resumed: an engine."""

    def load(self, reader: FragmentReader) -> None:
        """Take over the state. It may read, of every kind, the ranges that its own fragments have, and all shapes."""


class Snapshot:
    """Holds one state at a time. It is a FragmentSource, so whatever reads an engine reads a snapshot as well.

    The buffer is in the order of the fragments' kinds, names and starts, which is that of a file's bytes. Its pages
    are touched once, at the first checkpoint; a new one each time would cost more than the copy itself.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._fragments: list[Fragment] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.updates = 0

    def take(self, source: FragmentSource) -> None:
        """Copy *source* as it is now, over what was there."""
        fragments = sorted(
            (fragment for fragment in source.fragments() if fragment.values.numel()),
            key=lambda fragment: (fragment.kind, fragment.name, fragment.start),
        )
        wrong_type = next((fragment for fragment in fragments if fragment.values.dtype != torch.float32), None)
        if wrong_type is not None:
            raise ValueError(f"{wrong_type.kind} of {wrong_type.name} is {wrong_type.values.dtype}, not float32")
        total = sum(fragment.values.numel() for fragment in fragments)
        if self._buffer.numel() != total:
            self._buffer = torch.empty(total, dtype=torch.float32)
        self._fragments, offset = [], 0
        for fragment in fragments:
            copied = self._buffer[offset : offset + fragment.values.numel()]
            copied.copy_(fragment.values.detach().reshape(-1))
            self._fragments.append(Fragment(fragment.kind, fragment.name, fragment.start, copied))
            offset += copied.numel()
        self._shapes, self.updates = source.shapes(), source.updates

    @property
    def buffer(self) -> Tensor:
        """float32 (n,): all fragments, one after the other."""
        return self._buffer

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See FragmentSource."""
        return self._shapes

    def fragments(self) -> list[Fragment]:
        """See FragmentSource: copies, in the order of the buffer."""
        return self._fragments
