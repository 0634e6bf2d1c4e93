"""What a checkpoint is made of: contiguous pieces of the flattened float32 state of named parameters.

Which rank held which piece is of no meaning, so a checkpoint depends on neither world size nor ZeRO stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

WEIGHT = (
    "weight"  # the float32 weights. The optimizer's kinds are as torch names them: "exp_avg", "momentum_buffer", ...
)
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
