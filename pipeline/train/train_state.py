"""What a rank has of the float32 training state, whichever engine updates it: shards, moving average, updates done.

A shard is a range of a flattened parameter, as views of what the optimizer updates: whole parameters where nothing is
partitioned, else whatever ZeRO left on this rank. Checkpoints are made of shards, so a checkpoint depends on neither
world size nor ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pipeline.base.errors import MismatchError
from pipeline.checkpoints.state import EMA, WEIGHT, Fragment, FragmentReader
from pipeline.train.optimizer import set_updates, state_kinds

Shapes = dict[str, tuple[int, ...]]  # of whole parameters, by name


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


def state_shard_of(
    optimizer: torch.optim.Optimizer, name: str, start: int, master: Tensor, offset: int = 0, count: int | None = None
) -> StateShard:
    """Elements of parameter *name* from *start*: *count* of *master* from *offset*, and of its optimizer state."""
    part = slice(offset, None if count is None else offset + count)
    state = optimizer.state[master]
    tensors = {WEIGHT: master.detach()} | {kind: state[kind] for kind in state_kinds(optimizer)}
    return StateShard(name, start, {kind: tensor.view(-1)[part] for kind, tensor in tensors.items()})


def _check_shapes(own: Shapes, stored: Shapes) -> None:
    """Raises MismatchError naming the first parameter that only one side has, or that has another shape."""
    for name in sorted(own.keys() | stored.keys()):
        if own.get(name) != stored.get(name):
            in_network, in_checkpoint = (_shape_text(shapes.get(name)) for shapes in (own, stored))
            raise MismatchError(
                f"parameter {name}: the network has {in_network}, the checkpoint {in_checkpoint}",
                "the checkpoint is of another network: resume with the recipe it was made with",
            )


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"{list(shape)} ({prod(shape)} values)"


class Ema:
    """The moving average of the weights (Polyak): each rank has that of its shards, without communication.

    average = decay * average + (1 - decay) * weight, in float32, after every update. It starts as the weights.
    *decay* is constant (0.9999 is usual); the average of an early step is still mostly of the first weights.
    """

    def __init__(self, shards: Sequence[StateShard], decay: float) -> None:
        self._shards, self._decay = shards, decay
        self._weights = [shard.values[WEIGHT] for shard in shards]
        self._averages = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
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
        pairs = zip(self._shards, self._averages, strict=True)
        return [Fragment(EMA, shard.name, shard.start, average) for shard, average in pairs]

    def fill(self, reader: FragmentReader) -> None:
        """Overwrite the averages with what *reader* has."""
        for shard, average in zip(self._shards, self._averages, strict=True):
            average.copy_(reader.read(EMA, shard.name, shard.start, shard.stop))


class TrainState:
    """*shards*: all on this rank. *contributed*: what it gives to a checkpoint, so that no other rank gives the same.

    The two differ where ranks have the same weights: then each contributes its share. *ema* is a decay;
    0: there is no average.
    """

    def __init__(
        self,
        shapes: Shapes,
        shards: Sequence[StateShard],
        contributed: Sequence[StateShard],
        optimizer: torch.optim.Optimizer,
        ema: float = 0.0,
    ) -> None:
        self.shapes, self.updates = shapes, 0
        self._shards, self._contributed, self._optimizer = shards, contributed, optimizer
        self._ema = Ema(contributed, ema) if ema else None

    def updated(self) -> None:
        """The optimizer has done an update."""
        self.updates += 1
        if self._ema is not None:
            self._ema.update()

    def fragments(self) -> list[Fragment]:
        """See Engine."""
        averages = self._ema.fragments() if self._ema is not None else []
        return [fragment for shard in self._contributed for fragment in shard.fragments()] + averages

    @torch.no_grad()
    def fill(self, reader: FragmentReader) -> None:
        """Set everything to what *reader* has. Raises MismatchError when the parameters are others."""
        _check_shapes(self.shapes, reader.shapes())
        for shard in self._shards:
            shard.fill(reader)
        if self._ema is not None:
            self._ema.fill(reader)
        self.updates = reader.updates
        set_updates(self._optimizer, reader.updates)

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights to *weights*, whole and float32 by name; the moving average starts from them."""
        for shard in self._shards:
            shard.values[WEIGHT].copy_(weights[shard.name].reshape(-1)[shard.start : shard.stop])
        if self._ema is not None:
            self._ema.restart()
