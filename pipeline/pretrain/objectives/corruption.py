"""Which patches of an image are corrupted, and how (ViT B.1.2): drawn from (seed, position) alone. No torch.

ViT leaves open whether the half is exact: here it is, so that every image has equally many patches to predict, as in
BERT's code. Each of them is then masked, replaced or kept by a draw of its own. "Another random patch" is one of the
same image, other than itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.seeds import generator

MASKED, REPLACED = 0.8, 0.1  # shares of the corrupted patches; the rest is kept


@dataclass(frozen=True)
class Corruption:
    """Of B images, M patches each.

    chosen int64 (B, M): which patches are corrupted, ascending; sources int64 (B, M): the patch whose embedding each
    has, its own where it is kept; masked bool (B, M): those that have the mask token instead.
    """

    chosen: NDArray[np.int64]
    sources: NDArray[np.int64]
    masked: NDArray[np.bool_]


def num_corrupted(num_patches: int, share: float) -> int:
    """M: how many of *num_patches* are corrupted, at least one."""
    return max(1, round(num_patches * share))


def draw_corruption(seed: int, positions: Sequence[int], num_patches: int, share: float) -> Corruption:
    """For the samples at *positions* of the global order. A sample has other draws in each epoch."""
    shape = len(positions), num_corrupted(num_patches, share)
    chosen, sources = np.empty(shape, np.int64), np.empty(shape, np.int64)
    masked = np.empty(shape, np.bool_)
    for at, position in enumerate(positions):
        draws = generator(seed, "corruption", position)
        chosen[at] = np.sort(draws.permutation(num_patches)[: shape[1]])
        kind = draws.random(shape[1])
        others = (chosen[at] + 1 + draws.integers(max(1, num_patches - 1), size=shape[1])) % num_patches
        masked[at] = kind < MASKED
        sources[at] = np.where((kind >= MASKED) & (kind < MASKED + REPLACED), others, chosen[at])
    return Corruption(chosen, sources, masked)
