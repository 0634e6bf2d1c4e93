"""Sweep of linear heads trained by SGD in one pass over stored features (DINOv2, arXiv 2304.07193, eval/linear.py).

Each head has an input (features of the last 1 or 4 blocks, with or without the average pool) and a learning rate. All
heads see the same batches; heads with one input are one matrix product. A head's result equals that of training it
alone, to 1e-5.

What differs from DINOv2: features are stored, so there is no augmentation; a batch is drawn without replacement in
each epoch.

Shapes: N samples, D features of an input, K classes, H heads of an input, B batch, M queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.seeds import generator
from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import Values, settings_of
from pipeline.evaluate.features.storage import FeatureSpec, specs_for
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import SgdSettings
from pipeline.evaluate.task_data import open_task

Array = NDArray[np.float32]
_REFERENCE_BATCH = 256  # learning rates are given for this global batch and scaled in proportion
_MOMENTUM = 0.9
_INITIAL_STD = 0.01  # of the weights; biases start at zero


@dataclass(frozen=True, order=True)
class Head:
    """A linear head: the feature blocks that it sees, side by side, and its learning rate for a batch of 256."""

    learning_rate: float
    blocks: tuple[str, ...]


def feature_specs(planned: PlannedEvaluation) -> tuple[FeatureSpec, ...]:
    """The last blocks, and the average of the last one's patches."""
    settings: SgdSettings = settings_of(planned)
    blocks = specs_for(planned.model_ref, range(-settings.blocks, 0), "model", settings.dtype)
    return tuple(dict.fromkeys(blocks + specs_for(planned.model_ref, [-1], "gap", settings.dtype)))


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """A sweep of SGD heads on the last blocks; one chosen on validation, trained again on all training samples.

    The oracle chooses among the recorded result and all heads as trained on the fit part.
    """
    settings: SgdSettings = settings_of(planned)
    data, specs = open_task(workspace, planned), feature_specs(planned)
    data.require_one_label("sgd")
    data.prepare(specs)
    names = {f"{spec.layer}/{spec.pooling}": spec for spec in specs}
    train_by_name = {name: data.train(spec) for name, spec in names.items()}
    choices = {name: data.choice(train) for name, train in train_by_name.items()}
    first = next(iter(names))
    heads = heads_of({name: train.features for name, train in train_by_name.items()}, settings)
    training = {"steps": settings.steps, "batch_size": settings.batch_size, "seed": planned.key.seed}
    fit = {name: choice.fit.features for name, choice in choices.items()}
    swept = sgd_sweep(fit, choices[first].fit.labels, data.num_classes, heads, **training)
    validation = {name: choice.validation.features for name, choice in choices.items()}
    truth = choices[first].validation.labels
    head = choose_head(
        {trained: data.share(truth, head_scores(weights, validation, trained)) for trained, weights in swept.items()}
    )
    inputs = {name: train_by_name[name].features for name in head.blocks}
    weights = sgd_sweep(inputs, train_by_name[first].labels, data.num_classes, [head], **training)[head]
    test_by_name = {name: data.test(spec) for name, spec in names.items()}
    test, features = test_by_name[first], {name: part.features for name, part in test_by_name.items()}
    logits = head_scores(weights, features, head).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    outcomes = data.outcomes(test.keys, test.labels, probabilities, calibrated=True)
    shares = [data.share(test.labels, head_scores(fitted, features, trained)) for trained, fitted in swept.items()]
    oracle = data.oracle(test, [data.share(test.labels, probabilities), *shares], lambda _: probabilities)
    chosen = {"learning_rate": head.learning_rate, "blocks": list(head.blocks)}
    return EvalOutput(outcomes, data.num_classes, chosen, metrics=(oracle,))


def heads_of(features: dict[str, Values], settings: SgdSettings) -> list[Head]:
    """Every learning rate on the last block and on all of them, without and with the average pool.

    Where the model itself takes the average, with and without are the same, and the second is left out.
    """
    *blocks, pooled = features if len(features) > 1 else (*features, "")
    extras: list[tuple[str, ...]] = [()]
    if pooled and not np.array_equal(features[blocks[-1]], features[pooled]):
        extras.append((pooled,))
    inputs = dict.fromkeys(tuple(blocks[-count:]) + extra for count in (1, len(blocks)) for extra in extras)
    return [Head(rate, names) for names in inputs for rate in settings.learning_rates]


def sgd_sweep(
    features: Mapping[str, Array],
    labels_N: NDArray[np.int64],
    num_classes: int,
    heads: Sequence[Head],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> dict[Head, Array]:
    """Weights (K, D+1) of each head, the bias last. *features* are named blocks (N, D_block).

    SGD with momentum 0.9, no weight decay; learning rate x batch_size / 256, falling to zero by a cosine.
    """
    groups = [_HeadGroup(blocks, heads, features, num_classes, batch_size, seed) for blocks in _inputs(heads)]
    labels = torch.from_numpy(labels_N).long()
    for step, rows in enumerate(_batches(len(labels), batch_size, steps, seed)):
        parts = {name: torch.from_numpy(block[rows]) for name, block in features.items()}
        targets = torch.nn.functional.one_hot(labels[torch.from_numpy(rows)], num_classes).float()
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in groups:
            group.step(parts, targets, decay)
    return {head: weights for group in groups for head, weights in group.result()}


def head_scores(weights: Array, features: Mapping[str, Array], head: Head) -> Array:
    """(M, K) logits of a head."""
    x = np.concatenate([features[name] for name in head.blocks], axis=1)
    scores: Array = x @ weights[:, :-1].T + weights[:, -1]
    return scores


def choose_head(shares: Mapping[Head, float]) -> Head:
    """The head with the best validation share. Ties go to the smaller learning rate, then to fewer blocks."""
    return min(shares, key=lambda head: (-shares[head], head.learning_rate, len(head.blocks), head.blocks))


def _inputs(heads: Sequence[Head]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(head.blocks for head in heads))


def _batches(num_samples: int, batch_size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each step; epochs follow each other without a gap, so every batch is full."""
    pending, epoch = np.zeros(0, np.int64), 0
    for _ in range(steps):
        while len(pending) < batch_size:
            pending = np.concatenate([pending, generator(seed, "sgd", "order", epoch).permutation(num_samples)])
            epoch += 1
        yield pending[:batch_size]
        pending = pending[batch_size:]


class _HeadGroup:
    """The heads of one input: weights (D+1, H, K), so that one product serves all."""

    def __init__(
        self,
        blocks: tuple[str, ...],
        heads: Sequence[Head],
        features: Mapping[str, Array],
        num_classes: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._blocks = blocks
        self._heads = [head for head in heads if head.blocks == blocks]
        width = sum(features[name].shape[1] for name in blocks)
        kernels = [_initial_weights(head, width, num_classes, seed) for head in self._heads]
        self._weights = torch.cat([torch.stack(kernels, 1), torch.zeros(1, len(kernels), num_classes)])
        self._velocity = torch.zeros_like(self._weights)
        rates = torch.tensor([head.learning_rate for head in self._heads], dtype=torch.float64)
        self._rates = (rates * batch_size / _REFERENCE_BATCH)[None, :, None]

    def step(self, parts: Mapping[str, torch.Tensor], targets_BK: torch.Tensor, decay: float) -> None:
        """One step of all heads."""
        x = torch.cat([*(parts[name] for name in self._blocks), torch.ones(len(targets_BK), 1)], dim=1)
        logits = (x @ self._weights.flatten(1)).view(len(x), *self._weights.shape[1:])
        errors = (torch.softmax(logits, dim=2) - targets_BK[:, None]) / len(x)
        self._velocity.mul_(_MOMENTUM).add_((x.T @ errors.flatten(1)).view_as(self._velocity))
        self._weights.sub_((self._rates * decay).float() * self._velocity)

    def result(self) -> Iterator[tuple[Head, Array]]:
        """Each head's weights (K, D+1)."""
        for index, head in enumerate(self._heads):
            yield head, self._weights[:, index].T.contiguous().numpy()


def _initial_weights(head: Head, width: int, num_classes: int, seed: int) -> torch.Tensor:
    draw = generator(seed, "sgd", "head", repr(head.learning_rate), *head.blocks)
    return torch.from_numpy(_INITIAL_STD * draw.standard_normal((width, num_classes), dtype=np.float32))
