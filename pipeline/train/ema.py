"""The moving average of the weights (Polyak), kept by each rank for the pieces it holds, without communication."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.checkpoints.fragments import EMA, WEIGHT, Fragment, FragmentReader
from pipeline.train.pieces import Piece


class Ema:
    """average = decay * average + (1 - decay) * weight, in float32, after every update. It starts as the weights.

    *decay* is constant (0.9999 is usual); the average of an early step is still mostly of the first weights.
    """

    def __init__(self, pieces: Sequence[Piece], decay: float) -> None:
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
