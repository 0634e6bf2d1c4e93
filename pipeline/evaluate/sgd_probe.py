"""The evaluator ``sgd``: a sweep of linear heads on stored features of the last blocks (DINOv2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.finding import Finding
from pipeline.evaluate.probe.sgd import Head, choose_head, head_scores, sgd_sweep
from pipeline.evaluate.probing import settings_of, wanted_specs
from pipeline.evaluate.suite import SgdSettings
from pipeline.evaluate.task_data import open_task

Array = NDArray[Any]


def sgd(workspace: Store, planned: Planned) -> Finding:
    """A sweep of SGD heads on the last blocks; one chosen on validation, trained again on all training samples.

    The oracle chooses among all heads as trained on the fit part, and the recorded result.
    """
    settings: SgdSettings = settings_of(planned)
    data, specs = open_task(workspace, planned), wanted_specs(planned)
    data.require_one_label("sgd")
    data.prepare(specs)
    names = {f"{spec.layer}/{spec.pooling}": spec for spec in specs}
    trains = {name: data.train(spec) for name, spec in names.items()}
    choices = {name: data.choice(train) for name, train in trains.items()}
    first = next(iter(names))
    heads = heads_of({name: train.features for name, train in trains.items()}, settings)
    train_by = {"steps": settings.steps, "batch_size": settings.batch_size, "seed": planned.key.seed}
    fit = {name: choice.fit.features for name, choice in choices.items()}
    swept = sgd_sweep(fit, choices[first].fit.labels, data.num_classes, heads, **train_by)
    held = {name: choice.validation.features for name, choice in choices.items()}
    truth = choices[first].validation.labels
    head = choose_head({one: data.share(truth, head_scores(weights, held, one)) for one, weights in swept.items()})
    used = {name: trains[name].features for name in head.blocks}
    final = sgd_sweep(used, trains[first].labels, data.num_classes, [head], **train_by)[head]
    tests = {name: data.test(spec) for name, spec in names.items()}
    test, seen = tests[first], {name: part.features for name, part in tests.items()}
    logits = head_scores(final, seen, head).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    outcomes = data.outcomes(test.keys, test.labels, found, calibrated=True)
    shares_tried = [data.share(test.labels, head_scores(weights, seen, one)) for one, weights in swept.items()]
    best = data.oracle(test, [data.share(test.labels, found), *shares_tried], lambda _: found)
    chosen = {"learning_rate": head.learning_rate, "blocks": list(head.blocks)}
    return Finding(outcomes, data.num_classes, chosen, metrics=(best,))


def heads_of(features: dict[str, Array], settings: SgdSettings) -> list[Head]:
    """Every learning rate on the last block and on all of them, without and with the average pool.

    Where the model itself takes the average, with and without are the same, and the second is left out.
    """
    *blocks, pooled = features if len(features) > 1 else (*features, "")
    extras: list[tuple[str, ...]] = [()]
    if pooled and not np.array_equal(features[blocks[-1]], features[pooled]):
        extras.append((pooled,))
    inputs = dict.fromkeys(tuple(blocks[-count:]) + extra for count in (1, len(blocks)) for extra in extras)
    return [Head(rate, names) for names in inputs for rate in settings.learning_rates]
