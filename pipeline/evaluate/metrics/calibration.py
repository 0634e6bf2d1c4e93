"""Expected calibration error (Guo et al., arXiv 1706.04599): how far confidence is from the share that is right.

Shapes: N samples, E bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics.intervals import DRAWS, grouped_sums, percentiles
from pipeline.evaluate.metrics.outcomes import Outcomes
from pipeline.records.score import Metric

NUM_BINS = 15  # equal-width, as in Guo et al.


def ece(outcomes: Outcomes, seed: int = 0, draws: int = DRAWS) -> Metric:
    """Mean over bins of confidence of |mean confidence - share right|, weighted by samples; bootstrap interval.

    A bin holds its lower edge; a confidence of 1 belongs to the last. Noise only adds to this value, more so in a
    resample: with few samples the interval lies above it.
    """
    if np.isnan(outcomes.probabilities).any():
        raise ValueError("these outcomes hold no probabilities")
    gaps_N, bins_N = _gaps(outcomes)
    count = len(gaps_N)
    value = float(np.abs(np.bincount(bins_N, gaps_N, NUM_BINS)).sum() / count)
    drawn = np.abs(grouped_sums(gaps_N, bins_N, NUM_BINS, seed, draws)).sum(axis=1) / count
    low, high = percentiles(drawn)
    return Metric(name="ece", value=value, low=min(low, value), high=max(high, value))


def _gaps(outcomes: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N,) each sample's confidence less whether it is right, and its bin."""
    confidence = outcomes.probabilities.astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, NUM_BINS - 1)
    return confidence - (outcomes.predictions == outcomes.labels), bins.astype(np.int64)
