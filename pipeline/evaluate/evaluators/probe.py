"""Evaluators that probe stored features: here linear, knn and fewshot, and what they share with ``ridge_probe.py`` and
``sgd_probe.py``. Whatever is chosen is chosen before the test features are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from pipeline.evaluate.features.storage import FeatureSpec, specs_for
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import SETTINGS, TASK_RULES, ProbeSettings, SgdSettings
from pipeline.evaluate.splits import Choice, TestPart, TrainPart
from pipeline.evaluate.task_data import TaskData
from pipeline.records.score import Metric

FeatureArray = NDArray[Any]


@dataclass(frozen=True)
class Candidate:
    """The best of one layer: its share on validation, what was chosen, and what the refit needs."""

    spec: FeatureSpec
    share: float
    chosen: dict[str, Any]
    kept: Any = None


def settings_of(planned: PlannedEvaluation) -> Any:
    """The typed settings of an evaluation."""
    given = {name: value for name, value in planned.key.settings.items() if name not in TASK_RULES}
    return SETTINGS[planned.key.evaluator].model_validate(given)


def wanted_specs(planned: PlannedEvaluation) -> tuple[FeatureSpec, ...]:
    """The features that a probe reads, of both datasets of its task; none for what is no probe."""
    settings = settings_of(planned)
    if isinstance(settings, ProbeSettings):
        return specs_for(planned.subject, settings.layers, settings.pooling, settings.dtype)
    if isinstance(settings, SgdSettings):
        blocks = specs_for(planned.subject, range(-settings.blocks, 0), "model", settings.dtype)
        return tuple(dict.fromkeys(blocks + specs_for(planned.subject, [-1], "gap", settings.dtype)))
    return ()


class _Solver(Protocol):
    """A probe on one layer at a time."""

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        """The best setting of this layer."""

    def judge(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[FeatureArray, Metric]:
        """After all is chosen: (N, K) probabilities of the test samples, refitted on *train*; and the oracle."""


def _probe(data: TaskData, specs: tuple[FeatureSpec, ...], solver: _Solver) -> EvalOutput:
    """Choose among layers, each with its own best setting; refit on all training samples; then look at the test."""
    data.prepare(specs)
    best = best_of(solver.choose(spec, data.choice(data.train(spec))) for spec in specs)
    train, test = data.train(best.spec), data.test(best.spec)
    found, tried = solver.judge(best, train, test)
    outcomes = data.outcomes(test.keys, test.labels, found, calibrated=True)
    return EvalOutput(outcomes, data.num_classes, best.chosen, metrics=(tried,))


def best_of(candidates: Iterable[Candidate]) -> Candidate:
    """With the largest share on validation; of equals the first. What the others keep is let go at once."""
    best: Candidate | None = None
    shares: dict[str, float] = {}
    for one in candidates:
        shares[str(one.spec.layer)] = one.share
        if best is None or one.share > best.share:
            best = one
    if best is None:
        raise AssertionError("a probe has a layer")
    if len(shares) > 1:
        best.chosen.update({"layer": best.spec.layer, "validation_by_layer": shares})
    return best
