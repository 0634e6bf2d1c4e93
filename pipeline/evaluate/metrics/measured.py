"""What is recorded of an evaluation: every metric that its outcomes tell, the headline first."""

from __future__ import annotations

from pipeline.evaluate.metrics.calibration import ece
from pipeline.evaluate.metrics.classes import mean_per_class, nll, top1, top5
from pipeline.evaluate.metrics.multilabel import mean_ap
from pipeline.evaluate.metrics.outcomes import Outcomes
from pipeline.records.score import Metric

_TOP = 5  # with no more classes, top-5 is always right


def headline(outcomes: Outcomes) -> Metric:
    """What an evaluation is judged by: top-1, or mAP where samples have several labels."""
    return top1(outcomes) if outcomes.targets is None else mean_ap(outcomes)


def measured(outcomes: Outcomes, num_classes: int) -> tuple[Metric, ...]:
    """With one label: top1, top5 of more than five classes, mean_per_class, and of probabilities nll and ece. With
    several labels: mAP, and of probabilities nll."""
    found = [headline(outcomes)]
    if outcomes.targets is None:
        found += [top5(outcomes)] if num_classes > _TOP and outcomes.ranks is not None else []
        found.append(mean_per_class(outcomes))
    if outcomes.nll is not None:
        found += [nll(outcomes)] if outcomes.targets is not None else [nll(outcomes), ece(outcomes)]
    return tuple(found)
