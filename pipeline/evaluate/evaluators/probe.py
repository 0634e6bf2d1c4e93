"""What probes of stored features share: a layer and its setting are chosen on the validation part, the choice is
refitted on all training samples, and only then the test features are read.

Shapes: N samples, D features, K classes. A *share* is what candidates are compared by: top-1, or mAP where samples
have several labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from pipeline.evaluate.features.storage import FeatureSpec, specs_for
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import SETTINGS, TASK_RULES, ProbeSettings
from pipeline.evaluate.splits import Choice, TestPart, TrainPart
from pipeline.evaluate.task_data import TaskData
from pipeline.records.score import Metric

Values = NDArray[Any]


@dataclass(frozen=True)
class Candidate:
    """The best setting of one layer: its share on the validation part, what was chosen, what the refit needs."""

    spec: FeatureSpec
    share: float
    chosen: dict[str, Any]
    refit_state: Any = None


class ProbeSolver(Protocol):
    """A probe on one layer at a time."""

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        """The best setting of this layer."""

    def test(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[Values, Metric]:
        """Refit *best* on *train*: (N, K) probabilities of the test samples, and the oracle.

        It is called after everything is chosen.
        """


def settings_of(planned: PlannedEvaluation) -> Any:
    """The settings of an evaluation as the class that SETTINGS has for its evaluator."""
    settings = {name: value for name, value in planned.key.settings.items() if name not in TASK_RULES}
    return SETTINGS[planned.key.evaluator].model_validate(settings)


def layer_specs(planned: PlannedEvaluation) -> tuple[FeatureSpec, ...]:
    """The features of an evaluator whose settings are ProbeSettings: one spec for each layer."""
    settings: ProbeSettings = settings_of(planned)
    return specs_for(planned.model_ref, settings.layers, settings.pooling, settings.dtype)


def run_probe(data: TaskData, specs: tuple[FeatureSpec, ...], solver: ProbeSolver) -> EvalOutput:
    """Choose among layers, each with its own best setting; refit on all training samples; then read the test part."""
    data.prepare(specs)
    best = best_candidate(solver.choose(spec, data.choice(data.train(spec))) for spec in specs)
    train, test = data.train(best.spec), data.test(best.spec)
    probabilities, oracle = solver.test(best, train, test)
    outcomes = data.outcomes(test.keys, test.labels, probabilities, calibrated=True)
    return EvalOutput(outcomes, data.num_classes, best.chosen, metrics=(oracle,))


def best_candidate(candidates: Iterable[Candidate]) -> Candidate:
    """The one with the largest share on the validation part; the first of equals.

    Only the best one's refit state stays in memory. Of several layers the result names the chosen one and all shares.
    """
    best: Candidate | None = None
    shares: dict[str, float] = {}
    for candidate in candidates:
        shares[str(candidate.spec.layer)] = candidate.share
        if best is None or candidate.share > best.share:
            best = candidate
    if best is None:
        raise AssertionError("a probe has a layer")
    if len(shares) > 1:
        best.chosen.update({"layer": best.spec.layer, "validation_by_layer": shares})
    return best
