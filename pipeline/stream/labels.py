"""What a training batch says of each sample's labels, and which samples it cannot be said of. No torch.

Several labels are a bit for each class until they reach the rank: a slot of the shared memory has a fixed size, and
the float32 matrix that a loss takes would be 32 times as large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LabelMode = Literal["one", "many", "none"]


@dataclass(frozen=True)
class Labelling:
    """``one``: a class each; ``many``: any number of *num_classes* classes, none too; ``none``: labels are not read.

    *num_classes* 0: not known, so labels are not compared with it.
    """

    mode: LabelMode = "one"
    num_classes: int = 0

    @property
    def num_bytes(self) -> int:
        """Of the bits of one sample."""
        return -(-self.num_classes // 8) if self.mode == "many" else 0

    def fault(self, labels: tuple[int, ...]) -> str:
        """What is wrong with the *labels* of a sample, or ""."""
        if self.mode == "none":
            return ""
        if self.mode == "one" and len(labels) != 1:
            return f"it has {len(labels)} labels; this objective needs one"
        beyond = [label for label in labels if label < 0 or (self.num_classes and label >= self.num_classes)]
        return f"its label {beyond[0]} is none of the {self.num_classes} classes" if beyond else ""

    def put(self, labels: tuple[int, ...], into: NDArray[np.int64], bits: NDArray[np.uint8], at: int) -> None:
        """Write *labels*, which have no fault, as sample *at* of *into* (B,), and of *bits* (B, num_bytes)."""
        into[at] = labels[0] if self.mode == "one" else -1
        bits[at] = 0
        if self.mode == "many":
            for label in labels:
                bits[at, label >> 3] |= 1 << (label & 7)

    def multi_hot(self, bits: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, num_bytes) -> float32 (B, num_classes), 1 where the sample has the class."""
        return np.unpackbits(bits, axis=1, count=self.num_classes, bitorder="little").astype(np.float32)
