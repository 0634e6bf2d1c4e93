"""The confusion matrix as a table that names its classes, and the confusions that happen most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.report.pictures import confusion_picture
from pipeline.report.theme import Picture
from pipeline.report.words import class_name

MAX_NAMED = 20  # classes; above it the matrix is a picture
NUM_WORST = 8


@dataclass(frozen=True)
class ConfusionCell:
    """How many images of the row's class were taken for the column's, and which share of the row that is."""

    count: int
    share: float
    hit: bool


@dataclass(frozen=True)
class Mistake:
    """A pair of classes that is often confused."""

    truth: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """Everything the page shows of a confusion matrix: ``rows`` for few classes, else ``picture``."""

    names: tuple[str, ...]
    num_samples: int
    rows: tuple[tuple[ConfusionCell, ...], ...]
    picture: Picture | None
    worst: tuple[Mistake, ...]


def confusion_view(counts: npt.NDArray[np.int64], class_names: tuple[str, ...]) -> Confusion:
    """(K, K) counts with rows as truth -> what is shown."""
    names = tuple(class_name(class_names, label) for label in range(len(counts)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(counts) <= MAX_NAMED
    rows = tuple(
        tuple(ConfusionCell(int(counts[r, c]), float(shares[r, c]), r == c) for c in range(len(counts)))
        for r in range(len(counts) if few else 0)
    )
    picture = None if few else confusion_picture(counts)
    return Confusion(names, int(counts.sum()), rows, picture, _worst(counts, shares, names))


def _worst(
    counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], names: tuple[str, ...]
) -> tuple[Mistake, ...]:
    off = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    places = np.argsort(-off, axis=None, kind="stable")[:NUM_WORST]
    pairs = [divmod(int(place), len(counts)) for place in places]
    return tuple(Mistake(names[r], names[c], int(counts[r, c]), float(shares[r, c])) for r, c in pairs if off[r, c] > 0)
