"""Features of overlapping classes, for solvers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def blobs(count: int, width: int, classes: int, seed: int, spread: float = 1.5) -> tuple[NDArray, NDArray]:
    """Overlapping Gaussian classes around centres that depend on nothing but the shape."""
    centres = np.random.default_rng(0).normal(size=(classes, width))
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(count) % classes)
    return (centres[labels] + spread * draw.normal(size=(count, width))).astype(np.float32), labels.astype(np.int64)


def label_sets(count: int, width: int, classes: int, seed: int) -> tuple[NDArray, NDArray]:
    """Features, and 0/1 labels (count, classes): each is likelier on one side of a plane of its own."""
    planes = np.random.default_rng(0).normal(size=(width, classes))
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, width)).astype(np.float32)
    return features, (features @ planes + 2 * draw.normal(size=(count, classes)) > 2).astype(np.int64)
