"""Evaluator -> its program, one row each. ``records/evaluators.py`` has the other row of each, which needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators import classify, fewshot, finetune, inspect_model, knn, linear, ridge, sgd
from pipeline.evaluate.evaluators.probe import layer_specs
from pipeline.evaluate.features.storage import FeatureSpec
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation


def _no_features(planned: PlannedEvaluation) -> tuple[FeatureSpec, ...]:
    """For an evaluator that reads images."""
    return ()


@dataclass(frozen=True)
class Evaluator:
    """*run* turns a planned evaluation into outcomes, what it chose, and artefacts.

    *features*: the stored features that it reads of both datasets of its task. They are extracted before it starts,
    once for all evaluations that read them.
    """

    run: Callable[[Store, PlannedEvaluation], EvalOutput]
    features: Callable[[PlannedEvaluation], tuple[FeatureSpec, ...]] = _no_features


REGISTRY = {
    "linear": Evaluator(linear.run, layer_specs),
    "sgd": Evaluator(sgd.run, sgd.feature_specs),
    "knn": Evaluator(knn.run, layer_specs),
    "ridge": Evaluator(ridge.run, layer_specs),
    "fewshot": Evaluator(fewshot.run, layer_specs),
    "finetune": Evaluator(finetune.run),
    "classify": Evaluator(classify.run),
    "inspect": Evaluator(inspect_model.run),
}
