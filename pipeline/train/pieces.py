"""What a rank holds of the float32 training state: pieces of flattened parameters, views of what the optimizer updates.

Whole parameters where nothing is partitioned, else whatever ZeRO left on this rank. Checkpoints are made of them,
so a checkpoint depends on neither world size nor ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pipeline.base.errors import MismatchError
from pipeline.checkpoints.fragments import WEIGHT, Fragment, FragmentReader

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Piece:
    """Elements ``start .. start + n`` of parameter *name*, flat: float32 (n,) by kind (weight, the optimizer's)."""

    name: str
    start: int
    values: Mapping[str, Tensor]

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + self.values[WEIGHT].numel()

    def share(self, rank: int, world_size: int) -> Piece | None:
        """Contiguous part *rank* of *world_size* of it, all but the last of equal length; None: it is empty."""
        size = -(-(self.stop - self.start) // world_size)
        values = {kind: value[rank * size : (rank + 1) * size] for kind, value in self.values.items()}
        return Piece(self.name, self.start + rank * size, values) if values[WEIGHT].numel() else None

    def fragments(self) -> list[Fragment]:
        """One per kind."""
        return [Fragment(kind, self.name, self.start, values) for kind, values in self.values.items()]

    def fill(self, reader: FragmentReader) -> None:
        """Overwrite every kind with what *reader* has."""
        for kind, values in self.values.items():
            values.copy_(reader.read(kind, self.name, self.start, self.stop))


def state_kinds(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What *optimizer* keeps for each weight, as torch names it. Raises TypeError for one not known here."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ("exp_avg", "exp_avg_sq")
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    raise TypeError(f"what {type(optimizer).__name__} keeps is not known")


def prepare_state(optimizer: torch.optim.Optimizer, masters: Iterable[Tensor]) -> None:
    """Make now the state that torch would make in the first update, so that it can be saved and filled before.

    A momentum of zeros gives the same first update as none: momentum * 0 + gradient.
    """
    for master in masters:
        state = {kind: torch.zeros_like(master.detach()) for kind in state_kinds(optimizer)}
        if isinstance(optimizer, torch.optim.AdamW):
            state["step"] = torch.tensor(0.0)
        optimizer.state[master] = state


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """*updates* updates are done: Adam's bias correction goes on from there."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(float(updates))


def piece_of(
    optimizer: torch.optim.Optimizer, name: str, start: int, master: Tensor, offset: int = 0, count: int | None = None
) -> Piece:
    """The piece of parameter *name* that is *count* elements of *master* from *offset*, and of its state."""
    here = slice(offset, None if count is None else offset + count)
    state = optimizer.state[master]
    whole = {WEIGHT: master.detach()} | {kind: state[kind] for kind in state_kinds(optimizer)}
    return Piece(name, start, {kind: value.view(-1)[here] for kind, value in whole.items()})


def check_shapes(own: Shapes, theirs: Shapes) -> None:
    """Raises MismatchError naming the first parameter that only one side has, or that has another shape."""
    for name in sorted(own.keys() | theirs.keys()):
        if own.get(name) != theirs.get(name):
            mine, other = (_said(shapes.get(name)) for shapes in (own, theirs))
            raise MismatchError(
                f"parameter {name}: the network has {mine}, the checkpoint {other}",
                "the checkpoint is of another network: resume with the recipe it was made with",
            )


def _said(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"{list(shape)} ({prod(shape)} values)"
