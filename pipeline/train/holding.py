"""All that a rank holds of the training state, whichever engine updates it: pieces, moving average, updates done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.checkpoints.fragments import WEIGHT, Fragment, FragmentReader
from pipeline.train.ema import Ema
from pipeline.train.pieces import Piece, Shapes, check_shapes, set_updates


class Holding:
    """*held*: every piece on this rank. *given*: what it contributes, so that no other rank gives the same.

    The two differ where ranks hold the same weights: then each gives its share. *ema* is a decay, 0: none is kept.
    """

    def __init__(
        self,
        shapes: Shapes,
        held: Sequence[Piece],
        given: Sequence[Piece],
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
