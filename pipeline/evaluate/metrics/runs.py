"""Mean and standard deviation of a share over several trainings of one evaluation, with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import chdtri, stdtrit

from pipeline.evaluate.metrics.intervals import LEVEL
from pipeline.records.score import Metric

_TAIL = (1 - LEVEL) / 2


def over_runs(name: str, shares: Sequence[float]) -> tuple[Metric, ...]:
    """``<name>_runs_mean`` and ``<name>_runs_std`` of *shares*, one of each training; nothing for a single one.

    The trainings are taken as normally distributed: Student's t interval for the mean (cut to 0..1), chi-square for
    the deviation. They tell what other seeds would give on the same test samples, not what other samples would.
    """
    if len(shares) < 2:
        return ()
    degrees = len(shares) - 1
    mean, std = float(np.mean(shares)), float(np.std(shares, ddof=1))
    half = float(stdtrit(degrees, 1 - _TAIL)) * std / math.sqrt(len(shares))
    low, high = (std * math.sqrt(degrees / float(chdtri(degrees, tail))) for tail in (_TAIL, 1 - _TAIL))
    return (
        Metric(name=f"{name}_runs_mean", value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half)),
        Metric(name=f"{name}_runs_std", value=std, low=low, high=high),
    )
