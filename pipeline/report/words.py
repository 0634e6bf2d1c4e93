"""Numbers and names as the page writes them."""

from __future__ import annotations

EVALUATOR_NAMES = {
    "classify": "Own head",
    "linear": "Linear probe",
    "knn": "k-NN",
    "fewshot": "Few-shot",
    "finetune": "Fine-tuning",
}


def is_share(metric: str) -> bool:
    """True for metrics that are shares of the test samples: more is better, and they read as per cent."""
    return metric.startswith("top") or metric.endswith("accuracy")


def number(metric: str, value: float) -> str:
    """``84.2 %`` for shares, four digits for anything else."""
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def interval(metric: str, low: float, high: float) -> str:
    """``[82.5, 85.8]``, in the unit of :func:`number`."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]" if is_share(metric) else f"[{low:.4g}, {high:.4g}]"


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
