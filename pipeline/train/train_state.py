"""The moving average of the weights (Polyak), kept by each rank for the pieces it holds, without communication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pipeline.base.errors import MismatchError
from pipeline.checkpoints.state import EMA, WEIGHT, Fragment, FragmentReader
from pipeline.train.optimizer import set_updates, state_kinds

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StateShard:
    """Elements ``start .. start + n`` of parameter *name*, flat: float32 (n,) by kind (weight, the optimizer's)."""

    name: str
    start: int
    values: Mapping[str, Tensor]

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + self.values[WEIGHT].numel()

    def share(self, rank: int, world_size: int) -> StateShard | None:
        """Contiguous part *rank* of *world_size* of it, all but the last of equal length; None: it is empty."""
        size = -(-(self.stop - self.start) // world_size)
        values = {kind: value[rank * size : (rank + 1) * size] for kind, value in self.values.items()}
        return StateShard(self.name, self.start + rank * size, values) if values[WEIGHT].numel() else None

    def fragments(self) -> list[Fragment]:
        """One per kind."""
        return [Fragment(kind, self.name, self.start, values) for kind, values in self.values.items()]

    def fill(self, reader: FragmentReader) -> None:
        """Overwrite every kind with what *reader* has."""
        for kind, values in self.values.items():
            values.copy_(reader.read(kind, self.name, self.start, self.stop))


def piece_of(
    optimizer: torch.optim.Optimizer, name: str, start: int, master: Tensor, offset: int = 0, count: int | None = None
) -> StateShard:
    """The piece of parameter *name* that is *count* elements of *master* from *offset*, and of its state."""
    here = slice(offset, None if count is None else offset + count)
    state = optimizer.state[master]
    whole = {WEIGHT: master.detach()} | {kind: state[kind] for kind in state_kinds(optimizer)}
    return StateShard(name, start, {kind: value.view(-1)[here] for kind, value in whole.items()})


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


class Ema:
    """average = decay * average + (1 - decay) * weight, in float32, after every update. It starts as the weights.

    *decay* is constant (0.9999 is usual); the average of an early step is still mostly of the first weights.
    """

    def __init__(self, pieces: Sequence[StateShard], decay: float) -> None:
        self._pieces, self._decay = pieces, decay
        self._weights = [piece.values[WEIGHT] for piece in pieces]
        self._averages = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def follow(self) -> None:
        """An update is done."""
        if self._averages:
            torch._foreach_mul_(self._averages, self._decay)
            torch._foreach_add_(self._averages, self._weights, alpha=1.0 - self._decay)

    @torch.no_grad()
    def restart(self) -> None:
        """The weights were set from outside: the average is equal to them again."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.copy_(weight)

    def fragments(self) -> list[Fragment]:
        """Of the kind EMA: views."""
        pairs = zip(self._pieces, self._averages, strict=True)
        return [Fragment(EMA, piece.name, piece.start, average) for piece, average in pairs]

    def fill(self, reader: FragmentReader) -> None:
        """Overwrite the averages with what *reader* has."""
        for piece, average in zip(self._pieces, self._averages, strict=True):
            average.copy_(reader.read(EMA, piece.name, piece.start, piece.stop))


class TrainState:
    """*held*: every piece on this rank. *given*: what it contributes, so that no other rank gives the same.

    The two differ where ranks hold the same weights: then each gives its share. *ema* is a decay, 0: none is kept.
    """

    def __init__(
        self,
        shapes: Shapes,
        held: Sequence[StateShard],
        given: Sequence[StateShard],
        optimizer: torch.optim.Optimizer,
        ema: float = 0.0,
    ) -> None:
        self.shapes, self.updates = shapes, 0
        self._held, self._given, self._optimizer = held, given, optimizer
        self._ema = Ema(given, ema) if ema else None

    def updated(self) -> None:
        """The optimizer has done an update."""
        self.updates += 1
        if self._ema is not None:
            self._ema.follow()

    def fragments(self) -> list[Fragment]:
        """See Engine."""
        average = self._ema.fragments() if self._ema is not None else []
        return [fragment for piece in self._given for fragment in piece.fragments()] + average

    @torch.no_grad()
    def fill(self, reader: FragmentReader) -> None:
        """Set everything to what *reader* has. Raises MismatchError when the parameters are others."""
        check_shapes(self.shapes, reader.shapes())
        for piece in self._held:
            piece.fill(reader)
        if self._ema is not None:
            self._ema.fill(reader)
        self.updates = reader.updates
        set_updates(self._optimizer, reader.updates)

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights to *weights*, whole and float32 by name; the moving average starts from them."""
        for piece in self._held:
            piece.values[WEIGHT].copy_(weights[piece.name].reshape(-1)[piece.start : piece.stop])
        if self._ema is not None:
            self._ema.restart()
