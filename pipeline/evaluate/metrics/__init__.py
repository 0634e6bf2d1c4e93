"""Metrics: pure functions of per-sample outcomes. Nothing in here knows where outcomes come from.

::

    outcomes.py    what is known of each test sample
    stored.py      outcomes as parquet, and back
    classes.py     top-1, top-5, mean per class, confusion, NLL
    calibration.py ECE
    multilabel.py  mAP
    intervals.py   Wilson, bootstrap
    measured.py    all of them that outcomes tell
    runs.py        mean and deviation over several trainings
    oracle.py      what choosing on the test data would have shown, under a name that says so
"""

from pipeline.evaluate.metrics.classification import (
    confusion,
    ece,
    headline,
    mean_ap,
    mean_per_class,
    measured,
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
    "confusion",
    "ece",
    "headline",
    "mean_ap",
    "mean_per_class",
    "measured",
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
