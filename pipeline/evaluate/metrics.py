"""Metrics over per-sample outcomes, and their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.records.score import Metric

_Z = 1.959963984540054  # of the 95 % interval


@dataclass(frozen=True)
class Outcomes:
    """Per test sample: key, true label, predicted label, probability given to the prediction."""

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, JASA 22, 1927): also right near 0 and 1."""
    share, square = successes / trials, _Z**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def top1(outcomes: Outcomes) -> Metric:
    """Share of samples whose prediction is their label."""
    right, trials = int((outcomes.predictions == outcomes.labels).sum()), len(outcomes.labels)
    low, high = wilson(right, trials)
    return Metric(name="top1", value=right / trials, low=low, high=high)
