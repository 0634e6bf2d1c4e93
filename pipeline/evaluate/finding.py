"""What an evaluator found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pipeline.evaluate.metrics import Outcomes
from pipeline.records.score import Metric


@dataclass(frozen=True)
class Finding:
    """Outcomes on the test samples of *num_classes*; what was *chosen* on validation; *metrics* that outcomes do not
    tell."""

    outcomes: Outcomes
    num_classes: int
    chosen: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, NDArray[Any]] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
