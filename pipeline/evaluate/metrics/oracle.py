"""What choosing on the test data would have shown: a bound to read beside the honest value, never a result."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.records.score import Metric

PREFIX = "oracle_"


def oracle(candidates: Iterable[Metric], *, smaller_is_better: bool = False) -> Metric:
    """The best of the candidates' test values, named ``oracle_<metric>``. Its interval is that of the candidate alone:
    it does not cover the choosing.

    Raises ValueError when there are none, or when they are of several metrics.
    """
    given = list(candidates)
    names = {metric.name for metric in given}
    if len(names) != 1:
        raise ValueError(f"an oracle chooses among values of one metric, not {sorted(names)}")
    best = (min if smaller_is_better else max)(given, key=lambda metric: metric.value)
    return best.model_copy(update={"name": PREFIX + best.name})


def is_oracle(metric: Metric) -> bool:
    """True for a value that must not be reported as a result."""
    return metric.name.startswith(PREFIX)
