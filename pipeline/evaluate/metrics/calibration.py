"""Expected calibration error (Guo et al., arXiv 1706.04599): how far confidence is from the share that is right.

Shapes: N samples, E bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.evaluate.metrics.intervals import DRAWS, bootstrap, percentiles
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
    gaps = _gaps(outcomes)
    value = float(np.abs(gaps.sum(axis=0)).sum() / len(outcomes.keys))
    low, high = percentiles(bootstrap(lambda weights: _value(weights, gaps), len(outcomes.keys), seed, draws))
    return Metric(name="ece", value=value, low=min(low, value), high=max(high, value))


def _gaps(outcomes: Outcomes) -> csr_array:
    """(N, E): in its bin, each sample's confidence less whether it is right."""
    confidence = outcomes.probabilities.astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, NUM_BINS - 1)
    gap = confidence - (outcomes.predictions == outcomes.labels)
    return csr_array((gap, (np.arange(len(gap)), bins)), shape=(len(gap), NUM_BINS))


def _value(weights_bN: NDArray[np.float32], gaps: csr_array) -> NDArray[np.float64]:
    sums = (gaps.T @ weights_bN.T.astype(np.float64)).T
    values: NDArray[np.float64] = np.abs(sums).sum(axis=1) / weights_bN.shape[1]
    return values
