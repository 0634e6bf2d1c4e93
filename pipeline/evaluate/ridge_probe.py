"""The evaluator ``ridge``: features are read part by part, and are never in memory at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.features import FeatureSpec
from pipeline.evaluate.finding import Finding
from pipeline.evaluate.probe.ridge import Moments, Ridge, fit_ridge
from pipeline.evaluate.probing import Candidate, best_of, settings_of, wanted_specs
from pipeline.evaluate.split import TestPart
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
    chosen = l2s.index(best.chosen["l2"])
    test, scores, shares = _ridge_tested(data, best.spec, solutions, chosen)
    outcomes = data.outcomes(test.keys, test.labels, scores[chosen], calibrated=False)
    tried = data.oracle(test, shares, scores.__getitem__)
    return Finding(outcomes, data.num_classes, best.chosen, metrics=(tried,))


def _ridge_tested(
    data: TaskData, spec: FeatureSpec, solutions: list[Ridge], chosen: int
) -> tuple[TestPart, dict[int, Array], list[float]]:
    """The test samples without their features; scores (N, K) of the *chosen* solution, and of all where samples have
    several labels; and the share of each solution."""
    kept = range(len(solutions)) if data.is_many else [chosen]
    keys: list[str] = []
    labels: list[Array] = []
    right = np.zeros(len(solutions))
    scores: dict[int, list[Array]] = {place: [] for place in kept}
    for part in data.test_stream(spec):
        keys += part.keys
        labels.append(part.labels)
        for place, solution in enumerate(solutions):
            found = solution.scores(part.features)
            if place in scores:
                scores[place].append(found)
            if not data.is_many:
                right[place] += (found.argmax(axis=1) == part.labels).sum()
    test = TestPart(tuple(keys), np.concatenate(labels), np.empty((len(keys), 0), np.float32))
    joined = {place: np.concatenate(found) for place, found in scores.items()}
    if data.is_many:
        return test, joined, [data.share(test.labels, joined[place]) for place in kept]
    return test, joined, (right / len(keys)).tolist()


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
    solutions: list[Ridge] = fit_ridge(fit, sorted(set(l2s), reverse=True))
    scores: list[list[Array]] = [[] for _ in solutions]
    truth = []
    for part, is_held in data.train_stream(spec):
        truth.append(part.labels[is_held])
        for found, solution in zip(scores, solutions, strict=True):
            found.append(solution.scores(part.features[is_held]))
    shares = [data.share(np.concatenate(truth), np.concatenate(found)) for found in scores]
    place = int(np.argmax(shares))  # the first of equals, so the strongest
    return Candidate(spec, shares[place], {"l2": solutions[place].l2}, (fit, held))
