"""Metrics: pure functions of per-sample outcomes. Nothing in this folder knows where outcomes come from.

::

    outcomes.py         outcomes of each test sample, and all that an evaluator returns; as parquet, and back
    classification.py   top-1, top-5, mean per class, mAP, NLL, ECE, confusion; the oracle; over several trainings
    intervals.py        Wilson, bootstrap
"""

from pipeline.evaluate.metrics.classification import (
    compute_metrics,
    confusion,
    ece,
    headline,
    mean_ap,
    mean_per_class,
    nll,
    oracle,
    top1,
    top5,
)
from pipeline.evaluate.metrics.intervals import wilson
from pipeline.evaluate.metrics.outcomes import (
    Outcomes,
    of_label_scores,
    of_probabilities,
    of_scores,
    pack_outcomes,
    unpack_outcomes,
)

__all__ = [
    "Outcomes",
    "compute_metrics",
    "confusion",
    "ece",
    "headline",
    "mean_ap",
    "mean_per_class",
    "nll",
    "of_label_scores",
    "of_probabilities",
    "of_scores",
    "oracle",
    "pack_outcomes",
    "top1",
    "top5",
    "unpack_outcomes",
    "wilson",
]
