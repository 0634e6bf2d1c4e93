"""Mixup (arXiv 1710.09412) as big_vision's: one coefficient for each global batch, partners by a roll.

The coefficient comes from (seed, step). The partner of the sample in row q of its slot is the one in row q + 1 of the
same slot, and a slot never spans two ranks: so every sample has the same partner at every allowed world size.
Labels are not mixed but losses are, which is the same for every loss that is linear in the target.
Imports no torch: the draws are for loader processes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor


def draw_coefficient(a: float, seed: int, step: int) -> float:
    """The share of each sample's own in global batch *step*: max(b, 1 - b) with b ~ Beta(a, a); 1 where *a* is 0."""
    if a == 0:
        return 1.0
    drawn = float(generator(seed, "mixup", step).beta(a, a))
    return max(drawn, 1.0 - drawn)


def partners(num_rows: int, num_slots: int) -> NDArray[np.int64]:
    """The index of each sample's partner in a rank's batch of *num_rows* x *num_slots* samples, row by row.

    int64 (num_rows * num_slots,). A sample alone in its slot is its own partner.
    """
    count = num_rows * num_slots
    return (np.arange(count, dtype=np.int64) + num_slots) % max(count, 1)


def mixed(images_BCHW: Tensor, partners_BCHW: Tensor, coefficient: float) -> Tensor:
    """``coefficient * images + (1 - coefficient) * partners``, both normalised floats; *images_BCHW* is written to."""
    return images_BCHW.mul_(coefficient).add_(partners_BCHW, alpha=1.0 - coefficient)
