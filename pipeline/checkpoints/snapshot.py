"""A copy of a rank's fragments, in one buffer that is used again from checkpoint to checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.checkpoints.fragments import Fragment, FragmentSource


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
        theirs = sorted(
            (fragment for fragment in source.fragments() if fragment.values.numel()),
            key=lambda fragment: (fragment.kind, fragment.name, fragment.start),
        )
        other = next((fragment for fragment in theirs if fragment.values.dtype != torch.float32), None)
        if other is not None:
            raise ValueError(f"{other.kind} of {other.name} is {other.values.dtype}, not float32")
        total = sum(fragment.values.numel() for fragment in theirs)
        if self._buffer.numel() != total:
            self._buffer = torch.empty(total, dtype=torch.float32)
        self._fragments, offset = [], 0
        for fragment in theirs:
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
