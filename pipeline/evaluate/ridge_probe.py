"""The evaluator ``ridge``: features are read part by part, and are never in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.features import FeatureSpec
from pipeline.evaluate.finding import Finding
from pipeline.evaluate.probe.ridge import Moments, Part, Ridge, choose_ridge, fit_ridge, ridge_shares
from pipeline.evaluate.probing import Candidate, best_of, settings_of, wanted_specs
from pipeline.evaluate.split import TestPart, check_held_out
from pipeline.evaluate.suite import RidgeSettings
from pipeline.evaluate.task_data import TaskData, open_task

Array = NDArray[Any]


def ridge(workspace: Store, planned: Planned) -> Finding:
    """Ridge regression from streamed sums; l2 chosen on validation, and grown with the samples for the refit.

    The oracle chooses among every l2, refitted in the same way, of the layer that was chosen.
    """
    settings: RidgeSettings = settings_of(planned)
    data, specs = open_task(workspace, planned), wanted_specs(planned)
    data.prepare(specs)
    best = best_of(_ridge_candidate(data, spec, settings.l2) for spec in specs)
    fit, held = best.kept
    growth = (fit.num_samples + held.num_samples) / fit.num_samples
    fit.merge(held)
    l2s = sorted(set(settings.l2), reverse=True)
    solutions = fit_ridge(fit, [l2 * growth for l2 in l2s])
    test, scores = _tested(data, best.spec, solutions[l2s.index(best.chosen["l2"])])
    outcomes = data.outcomes(test.keys, test.labels, scores, calibrated=False)
    shares = ridge_shares(solutions, _parts(data.test_stream(best.spec)))
    tried = data.oracle(test, shares, lambda place: _tested(data, best.spec, solutions[place])[1])
    return Finding(outcomes, data.num_classes, best.chosen, metrics=(tried,))


def _tested(data: TaskData, spec: FeatureSpec, solution: Ridge) -> tuple[TestPart, Array]:
    """The test samples without their features, and their scores (N, K)."""
    keys: list[str] = []
    labels: list[Array] = []
    scores: list[Array] = []
    for part in data.test_stream(spec):
        keys += part.keys
        labels.append(part.labels)
        scores.append(solution.scores(part.features))
    test = TestPart(tuple(keys), np.concatenate(labels), np.empty((len(keys), 0), np.float32))
    return test, np.concatenate(scores)


def _parts(stream: Iterator[TestPart]) -> Iterator[Part]:
    return ((part.features, part.labels) for part in stream)


def _ridge_candidate(data: TaskData, spec: FeatureSpec, l2s: Sequence[float]) -> Candidate:
    """Two passes over the training features: one adds up, one compares."""
    fit = held = None
    for part, is_held in data.train_stream(spec):
        if fit is None or held is None:
            fit, held = (Moments(part.features.shape[1], data.num_classes) for _ in range(2))
        fit.add(part.features[~is_held], part.labels[~is_held])
        held.add(part.features[is_held], part.labels[is_held])
    if fit is None or held is None:
        raise AssertionError("a dataset has a sample")
    check_held_out(fit.num_samples, held.num_samples, data.task.validation)
    validation = ((part.features[is_held], part.labels[is_held]) for part, is_held in data.train_stream(spec))
    best, share = choose_ridge(fit, validation, l2s)
    return Candidate(spec, share, {"l2": best.l2}, (fit, held))
