"""Evaluators that probe stored features. Whatever is chosen is chosen before the test features are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.features import FeatureSpec, specs_for
from pipeline.evaluate.finding import Finding
from pipeline.evaluate.probe.fewshot import FewshotSystem, choose_shots
from pipeline.evaluate.probe.knn import knn_probabilities
from pipeline.evaluate.probe.linear import (
    Standardiser,
    Weights,
    choose_l2,
    fit_logistic,
    label_probabilities,
    probabilities,
)
from pipeline.evaluate.probe.ridge import Moments, Ridge, fit_ridge
from pipeline.evaluate.probe.sgd import Head, choose_head, head_scores, sgd_sweep
from pipeline.evaluate.split import Choice, FitPart, TrainPart, split
from pipeline.evaluate.suite import (
    SETTINGS,
    FewshotSettings,
    KnnSettings,
    LinearSettings,
    ProbeSettings,
    RidgeSettings,
    SgdSettings,
)
from pipeline.evaluate.task_data import TaskData, open_task

Array = NDArray[Any]


@dataclass(frozen=True)
class _Candidate:
    """The best of one layer: its share on validation, what was chosen, and what the refit needs."""

    spec: FeatureSpec
    share: float
    chosen: dict[str, Any]
    kept: Any = None


def settings_of(planned: Planned) -> Any:
    """The typed settings of an evaluation."""
    given = {name: value for name, value in planned.key.settings.items() if name != "validation"}
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
    """Logistic regression; l2 chosen on validation, refitted on all training samples."""
    settings: LinearSettings = settings_of(planned)
    data = open_task(workspace, planned)
    to_probabilities = label_probabilities if data.is_many else probabilities

    def candidate(spec: FeatureSpec, choice: Choice) -> _Candidate:
        fit, held = choice.fit, choice.validation
        scale = Standardiser(fit.features)
        l2, weights = choose_l2(
            (scale(fit.features), fit.labels),
            (scale(held.features), held.labels),
            data.num_classes,
            settings.l2,
            settings.max_iterations,
        )
        share = data.share(held.labels, to_probabilities(weights, scale(held.features)))
        return _Candidate(spec, share, {"l2": l2}, weights)

    def refit(best: _Candidate, train: TrainPart) -> Callable[[Array], Array]:
        start: Weights = best.kept
        scale = Standardiser(train.features)
        weights = fit_logistic(
            scale(train.features),
            train.labels,
            data.num_classes,
            best.chosen["l2"],
            max_iterations=settings.max_iterations,
            start=start,
        )
        return lambda features: to_probabilities(weights, scale(features))

    return _probe(data, wanted_specs(planned), candidate, refit)


def knn(workspace: Store, planned: Planned) -> Finding:
    """Weighted k-NN; k chosen on validation (ties: the smaller)."""
    settings: KnnSettings = settings_of(planned)
    data = open_task(workspace, planned)

    def votes(train: FitPart | TrainPart, queries: Array, ks: Sequence[int]) -> dict[int, Array]:
        return knn_probabilities(train.features, train.labels, queries, data.num_classes, ks, settings.temperature)

    def candidate(spec: FeatureSpec, choice: Choice) -> _Candidate:
        found = votes(choice.fit, choice.validation.features, settings.k)
        shares = {k: data.share(choice.validation.labels, found[k]) for k in sorted(found)}
        k = max(shares, key=lambda k: shares[k])
        return _Candidate(spec, shares[k], {"k": k})

    def refit(best: _Candidate, train: TrainPart) -> Callable[[Array], Array]:
        k = best.chosen["k"]
        return lambda features: votes(train, features, [k])[k]

    return _probe(data, wanted_specs(planned), candidate, refit)


def ridge(workspace: Store, planned: Planned) -> Finding:
    """Ridge regression from streamed sums; l2 chosen on validation, and grown with the samples for the refit."""
    settings: RidgeSettings = settings_of(planned)
    data, specs = open_task(workspace, planned), wanted_specs(planned)
    data.prepare(specs)
    best = _best([_ridge_candidate(data, spec, settings.l2) for spec in specs])
    fit, held = best.kept
    grown = best.chosen["l2"] * (fit.num_samples + held.num_samples) / fit.num_samples
    fit.merge(held)
    (solution,) = fit_ridge(fit, [grown])
    keys: list[str] = []
    labels, scores = [], []
    for part in data.test_stream(best.spec):
        keys += part.keys
        labels.append(part.labels)
        scores.append(solution.scores(part.features))
    outcomes = data.outcomes(tuple(keys), np.concatenate(labels), np.concatenate(scores), calibrated=False)
    return Finding(outcomes, best.chosen)


def _ridge_candidate(data: TaskData, spec: FeatureSpec, l2s: Sequence[float]) -> _Candidate:
    """Two passes over the training features: one adds up, one compares."""
    fit = held = None
    for part, labels, is_held in data.train_stream(spec):
        if fit is None or held is None:
            fit, held = (Moments(part.features.shape[1], data.num_classes) for _ in range(2))
        fit.add(part.features[~is_held], labels[~is_held])
        held.add(part.features[is_held], labels[is_held])
    if fit is None or held is None:
        raise AssertionError("a dataset has a sample")
    solutions: list[Ridge] = fit_ridge(fit, sorted(set(l2s), reverse=True))
    scores: list[list[Array]] = [[] for _ in solutions]
    truth = []
    for part, labels, is_held in data.train_stream(spec):
        truth.append(labels[is_held])
        for found, solution in zip(scores, solutions, strict=True):
            found.append(solution.scores(part.features[is_held]))
    shares = [data.share(np.concatenate(truth), np.concatenate(found)) for found in scores]
    place = int(np.argmax(shares))  # the first of equals, so the strongest
    return _Candidate(spec, shares[place], {"l2": solutions[place].l2}, (fit, held))


def sgd(workspace: Store, planned: Planned) -> Finding:
    """A sweep of SGD heads on the last blocks; one chosen on validation, trained again on all training samples."""
    settings: SgdSettings = settings_of(planned)
    data, specs = open_task(workspace, planned), wanted_specs(planned)
    data.require_one_label("sgd")
    data.prepare(specs)
    names = {f"{spec.layer}/{spec.pooling}": spec for spec in specs}
    trains = {name: data.train(spec) for name, spec in names.items()}
    choices = {name: split(train, data.task.validation) for name, train in trains.items()}
    first = next(iter(names))
    heads = _heads({name: train.features for name, train in trains.items()}, settings)
    train_by = {"steps": settings.steps, "batch_size": settings.batch_size, "seed": planned.key.seed}
    fit = {name: choice.fit.features for name, choice in choices.items()}
    swept = sgd_sweep(fit, choices[first].fit.labels, data.num_classes, heads, **train_by)
    held = {name: choice.validation.features for name, choice in choices.items()}
    truth = choices[first].validation.labels
    head = choose_head({one: data.share(truth, head_scores(weights, held, one)) for one, weights in swept.items()})
    used = {name: trains[name].features for name in head.blocks}
    final = sgd_sweep(used, trains[first].labels, data.num_classes, [head], **train_by)[head]
    tests = {name: data.test(names[name]) for name in head.blocks}
    test = tests[head.blocks[0]]
    logits = head_scores(final, {name: part.features for name, part in tests.items()}, head).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    outcomes = data.outcomes(
        test.keys, test.labels, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32), calibrated=True
    )
    return Finding(outcomes, {"learning_rate": head.learning_rate, "blocks": list(head.blocks)})


def _heads(features: dict[str, Array], settings: SgdSettings) -> list[Head]:
    """Every learning rate on the last block and on all of them, without and with the average pool.

    Where the model itself takes the average, with and without are the same, and the second is left out.
    """
    *blocks, pooled = features if len(features) > 1 else (*features, "")
    extras: list[tuple[str, ...]] = [()]
    if pooled and not np.array_equal(features[blocks[-1]], features[pooled]):
        extras.append((pooled,))
    inputs = dict.fromkeys(tuple(blocks[-count:]) + extra for count in (1, len(blocks)) for extra in extras)
    return [Head(rate, names) for names in inputs for rate in settings.learning_rates]


def fewshot(workspace: Store, planned: Planned) -> Finding:
    """Ridge regression on a few samples per class, drawn by the seed. Chooses nothing."""
    settings: FewshotSettings = settings_of(planned)
    data = open_task(workspace, planned)
    data.require_one_label("fewshot")
    (spec,) = wanted_specs(planned)
    data.prepare([spec])
    train, test = data.train(spec), data.test(spec)
    rows = choose_shots(train.labels, data.num_classes, settings.shots, planned.key.seed)
    system = FewshotSystem(train.features[rows], train.labels[rows], data.num_classes)
    return Finding(data.outcomes(test.keys, test.labels, system.scores(test.features, settings.l2), calibrated=False))


def _probe(
    data: TaskData,
    specs: tuple[FeatureSpec, ...],
    candidate: Callable[[FeatureSpec, Choice], _Candidate],
    refit: Callable[[_Candidate, TrainPart], Callable[[Array], Array]],
) -> Finding:
    """Choose among layers, each with its own best setting; refit on all training samples; then look at the test."""
    data.prepare(specs)
    best = _best([candidate(spec, split(data.train(spec), data.task.validation)) for spec in specs])
    predict = refit(best, data.train(best.spec))
    test = data.test(best.spec)
    return Finding(data.outcomes(test.keys, test.labels, predict(test.features), calibrated=True), best.chosen)


def _best(candidates: list[_Candidate]) -> _Candidate:
    """With the largest share on validation; of equals the first."""
    best = max(candidates, key=lambda one: one.share)
    if len(candidates) > 1:
        shares = {str(one.spec.layer): one.share for one in candidates}
        best.chosen.update({"layer": best.spec.layer, "validation_by_layer": shares})
    return best
