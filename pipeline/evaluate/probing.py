"""Evaluators that probe stored features: here linear, knn and fewshot, and what they share with ``ridge_probe.py`` and
``sgd_probe.py``. Whatever is chosen is chosen before the test features are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.features import FeatureSpec, specs_for
from pipeline.evaluate.finding import Finding
from pipeline.evaluate.metrics import headline
from pipeline.evaluate.metrics.oracle import PREFIX
from pipeline.evaluate.probe.fewshot import FewshotSystem, choose_shots
from pipeline.evaluate.probe.knn import knn_probabilities
from pipeline.evaluate.probe.linear import (
    Standardiser,
    fit_candidates,
    fit_logistic,
    label_probabilities,
    path_shares,
    probabilities,
)
from pipeline.evaluate.split import Choice, FitPart, TestPart, TrainPart
from pipeline.evaluate.suite import (
    SETTINGS,
    TASK_RULES,
    FewshotSettings,
    KnnSettings,
    LinearSettings,
    ProbeSettings,
    SgdSettings,
)
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.records.score import Metric

Array = NDArray[Any]


@dataclass(frozen=True)
class Candidate:
    """The best of one layer: its share on validation, what was chosen, and what the refit needs."""

    spec: FeatureSpec
    share: float
    chosen: dict[str, Any]
    kept: Any = None


def settings_of(planned: Planned) -> Any:
    """The typed settings of an evaluation."""
    given = {name: value for name, value in planned.key.settings.items() if name not in TASK_RULES}
    return SETTINGS[planned.key.evaluator].model_validate(given)


def wanted_specs(planned: Planned) -> tuple[FeatureSpec, ...]:
    """The features that a probe reads, of both datasets of its task; none for what is no probe."""
    settings = settings_of(planned)
    if isinstance(settings, ProbeSettings):
        return specs_for(planned.subject, settings.layers, settings.pooling, settings.dtype)
    if isinstance(settings, SgdSettings):
        blocks = specs_for(planned.subject, range(-settings.blocks, 0), "model", settings.dtype)
        return tuple(dict.fromkeys(blocks + specs_for(planned.subject, [-1], "gap", settings.dtype)))
    return ()


def linear(workspace: Store, planned: Planned) -> Finding:
    """Logistic regression; l2 chosen on validation, refitted on all training samples.

    The oracle chooses among every l2 as fitted on the fit part, of the layer that was chosen, and the recorded result:
    the path of the choice is used again, and no l2 is fitted a second time. Beside what was chosen stands whether the
    refit ``converged``, and which l2 of the path did not, if any.
    """
    data = open_task(workspace, planned)
    return _probe(data, wanted_specs(planned), _Linear(data, settings_of(planned)))


def knn(workspace: Store, planned: Planned) -> Finding:
    """Weighted k-NN; k chosen on validation (ties: the smaller).

    The oracle chooses among every k with all training samples as neighbours, of the layer that was chosen.
    """
    data = open_task(workspace, planned)
    return _probe(data, wanted_specs(planned), _Knn(data, settings_of(planned)))


class _Solver(Protocol):
    """A probe on one layer at a time."""

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        """The best setting of this layer."""

    def judge(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[Array, Metric]:
        """After all is chosen: (N, K) probabilities of the test samples, refitted on *train*; and the oracle."""


class _Linear:
    def __init__(self, data: TaskData, settings: LinearSettings) -> None:
        self._data, self._settings = data, settings
        self._probabilities = label_probabilities if data.is_many else probabilities

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        fit, held, settings = choice.fit, choice.validation, self._settings
        scale = Standardiser(fit.features)
        fits = fit_candidates(
            scale(fit.features), fit.labels, self._data.num_classes, settings.l2, settings.max_iterations
        )
        best = fits[int(np.argmax(path_shares(fits, scale(held.features), held.labels)))]  # of equals the strongest
        share = self._data.share(held.labels, self._probabilities(best.weights, scale(held.features)))
        unfinished = [fit.l2 for fit in fits if not fit.converged]
        chosen = {"l2": best.l2} | ({"unconverged_l2": unfinished} if unfinished else {})
        return Candidate(spec, share, chosen, (best, fits, scale))

    def judge(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[Array, Metric]:
        start, fits, first_scale = best.kept
        scale = Standardiser(train.features)
        refit = fit_logistic(
            scale(train.features),
            train.labels,
            self._data.num_classes,
            best.chosen["l2"],
            max_iterations=self._settings.max_iterations,
            start=start.weights,
        )
        best.chosen["converged"] = refit.converged
        found = self._probabilities(refit.weights, scale(test.features))
        tried = first_scale(test.features)
        shares = [self._data.share(test.labels, found), *path_shares(fits, tried, test.labels)]

        def scores_of(place: int) -> Array:
            return self._probabilities(fits[place - 1].weights, tried) if place else found

        return found, self._data.oracle(test, shares, scores_of)


class _Knn:
    def __init__(self, data: TaskData, settings: KnnSettings) -> None:
        self._data, self._settings = data, settings

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        found = self._votes(choice.fit, choice.validation.features)
        shares = {k: self._data.share(choice.validation.labels, found[k]) for k in sorted(found)}
        k = max(shares, key=lambda k: shares[k])
        return Candidate(spec, shares[k], {"k": k})

    def judge(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[Array, Metric]:
        found = self._votes(train, test.features)
        ks = sorted(found)
        shares = [self._data.share(test.labels, found[k]) for k in ks]
        return found[best.chosen["k"]], self._data.oracle(test, shares, lambda place: found[ks[place]])

    def _votes(self, train: FitPart | TrainPart, queries: Array) -> dict[int, Array]:
        return knn_probabilities(
            train.features, train.labels, queries, self._data.num_classes, self._settings.k, self._settings.temperature
        )


def fewshot(workspace: Store, planned: Planned) -> Finding:
    """Ridge regression on a few samples per class, drawn by the seed. Chooses nothing.

    What another l2 would have given on the test samples stands beside it as ``oracle_top1_l2_<l2>``: taking one for
    it would be choosing there.
    """
    settings: FewshotSettings = settings_of(planned)
    data = open_task(workspace, planned)
    data.require_one_label("fewshot")
    (spec,) = wanted_specs(planned)
    data.prepare([spec])
    train, test = data.train(spec), data.test(spec)
    rows = choose_shots(train.labels, data.num_classes, settings.shots, planned.key.seed)
    system = FewshotSystem(train.features[rows], train.labels[rows], data.num_classes)
    scores = system.scores_of_all(test.features, [settings.l2, *settings.other_l2])
    outcomes = {l2: data.outcomes(test.keys, test.labels, found, calibrated=False) for l2, found in scores.items()}
    others = tuple(
        headline(outcomes[l2]).model_copy(update={"name": f"{PREFIX}top1_l2_{l2:g}"})
        for l2 in dict.fromkeys(settings.other_l2)
    )
    return Finding(outcomes[settings.l2], data.num_classes, metrics=others)


def _probe(data: TaskData, specs: tuple[FeatureSpec, ...], solver: _Solver) -> Finding:
    """Choose among layers, each with its own best setting; refit on all training samples; then look at the test."""
    data.prepare(specs)
    best = best_of(solver.choose(spec, data.choice(data.train(spec))) for spec in specs)
    train, test = data.train(best.spec), data.test(best.spec)
    found, tried = solver.judge(best, train, test)
    outcomes = data.outcomes(test.keys, test.labels, found, calibrated=True)
    return Finding(outcomes, data.num_classes, best.chosen, metrics=(tried,))


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
