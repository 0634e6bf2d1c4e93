"""StreamRecipe and AugmentRecipe: what fixes the order and the pixels of the training stream. LabelEncoder: what a
batch holds of each sample's labels, and which samples have labels that it cannot hold. No torch.

Several labels are a bit for each class until they reach the rank: a slot of the shared memory has a fixed size, and
the float32 matrix that a loss takes would be 32 times as large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from pipeline.base.config import Config, PerAttempt
from pipeline.base.units import parse_bytes

LabelMode = Literal["one", "many", "none"]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


@dataclass(frozen=True)
class LabelEncoder:
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


class RandAugmentRecipe(Config):
    """RandAugment (arXiv 1909.13719) as big_vision's ``randaug``: *layers* operations, each at *magnitude* of 10."""

    layers: int = Field(0, ge=0, le=16, description="operations on each image; 0: none")
    magnitude: float = Field(10, ge=0, le=30, description="strength: 10 is the middle of AugReg, 20 its strongest")


class AugmentRecipe(Config):
    """Random crop and flip, then RandAugment.

    ``resized``: a random part of the area, resized; ``padded``: shifted by up to *padding*.
    """

    crop: Literal["resized", "padded", "none"] = "resized"
    size: int = Field(224, gt=0, description="side of the output, in pixels")
    area_min: float = Field(0.05, gt=0, le=1, description="smallest part of the area (big_vision: 5-100 %)")
    aspect_max: float = Field(4 / 3, ge=1, description="aspect ratios are drawn from 1/aspect_max to aspect_max")
    padding: int = Field(0, ge=0, description="pixels on each side, for 'padded'")
    flip: bool = Field(True, description="mirror every second image")
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    randaugment: RandAugmentRecipe = RandAugmentRecipe()

    @model_validator(mode="after")
    def _something_stays(self) -> Self:
        if self.padding > self.size:
            raise ValueError(
                f"padding {self.padding} is more than size {self.size}; nothing of the image would be left"
            )
        return self


class StreamRecipe(Config):
    """The global order (batch, partitions, window) and what happens to each sample."""

    batch_size: int = Field(4096, gt=0, description="samples of a global batch, over all ranks")
    partitions: int = Field(8, gt=0, description="P: world sizes that divide it see the same global batches")
    window: int = Field(10_000, gt=0, description="samples of the shuffle window inside a partition")
    augment: AugmentRecipe = AugmentRecipe()
    mixup: float = Field(0.0, ge=0, description="a of Beta(a, a), drawn once a step; partners are of the same slot")
    check: PerAttempt[Literal["digest", "header"]] = Field(
        "digest", description="what is compared at each read of a sample"
    )
    max_damaged: PerAttempt[int] = Field(
        0, ge=0, description="damaged samples that are replaced by the next of their slot"
    )
    workers: PerAttempt[int] = Field(0, ge=0, description="loader processes of each rank; 0: in the rank itself")
    ahead: PerAttempt[int] = Field(2, gt=0, description="batches that each loader process prepares ahead")
    access: PerAttempt[Literal["cached", "ranged"]] = Field(
        "cached", description="fetch whole shards into this node's cache, or each sample by range; folders: in place"
    )
    cache_bytes: PerAttempt[Bytes] = Field(
        20_000_000_000, description="of this node's cache, shared by its ranks and runs"
    )
    patience_seconds: PerAttempt[float] = Field(
        600.0, ge=0, description="how long a store that does not answer is waited for"
    )
    stall_seconds: PerAttempt[float] = Field(
        30.0, gt=0, description="a loader process that shows no life so long is replaced"
    )
    audit: PerAttempt[bool] = Field(
        False, description="log every sample that is handed out, for 'vitpipe stream audit'"
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.partitions:
            near = [count for count in range(1, self.batch_size + 1) if self.batch_size % count == 0]
            raise ValueError(f"partitions {self.partitions} does not divide batch_size {self.batch_size}; use {near}")
        if self.mixup and self.batch_size == self.partitions:
            raise ValueError("mixup needs two samples of each slot: make batch_size at least twice partitions")
        return self
