"""Numbers and names as text: of the page and of the tables of commands."""

from __future__ import annotations

from pipeline.records.score import L2_INFIX, ORACLE_PREFIX, RUNS_MEAN, RUNS_STD

_METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "mAP": "mAP",
    "nll": "negative log-likelihood",
    "ece": "calibration error",
}
ORACLE_WORDS = "chosen on the test data: a bound, not a result"
_SHARES = {"top1", "top5", "mean_per_class", "mAP"}


def is_oracle(metric: str) -> bool:
    """True for what no table may show as a result."""
    return metric.startswith(ORACLE_PREFIX)


def is_share(metric: str) -> bool:
    """True for metrics that are shares of the test samples, or means of shares: they read as per cent."""
    plain = metric.removeprefix(ORACLE_PREFIX).partition(L2_INFIX)[0].removesuffix(RUNS_MEAN).removesuffix(RUNS_STD)
    return plain in _SHARES or plain.endswith("accuracy")


def metric_name(metric: str) -> str:
    """As people call it; an oracle's value with the words that say what it is."""
    if is_oracle(metric):
        return f"{metric_name(metric.removeprefix(ORACLE_PREFIX))}, {ORACLE_WORDS}"
    plain, _, l2 = metric.partition(L2_INFIX)
    return f"{_METRIC_NAMES.get(plain, plain)}{f' with l2 {l2}' if l2 else ''}"


def number(metric: str, value: float) -> str:
    """``84.2 %`` for shares, four digits for anything else."""
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def interval(metric: str, low: float, high: float) -> str:
    """``[82.5, 85.8]``, in the unit of :func:`number`."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]" if is_share(metric) else f"[{low:.4g}, {high:.4g}]"


def probability_text(probability: float) -> str:
    """``97.3 %``; beyond 99.9 % and 0.1 % only that it is beyond."""
    if probability > 0.999:
        return "> 99.9 %"
    return "< 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"


def count(value: int) -> str:
    """``60,000``."""
    return f"{value:,}"


def plural(value: int, word: str) -> str:
    """``1 image``, ``60,000 images``, ``10 classes``."""
    ending = "" if value == 1 else "es" if word.endswith("s") else "s"
    return f"{count(value)} {word}{ending}"


def class_name(names: tuple[str, ...], label: int) -> str:
    """The name of class *label*, or ``class 7`` when the card does not name it."""
    return names[label] if 0 <= label < len(names) else f"class {label}"
