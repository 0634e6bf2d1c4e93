"""The sweep of heads equals training each alone, and plain SGD; it learns; ties are settled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.evaluate.evaluators.sgd import Head, choose_head, head_scores, heads_of, sgd_sweep
from pipeline.evaluate.recipe import SgdSettings
from tests.support.blobs import blobs

RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]  # DINOv2
NAMES = ["block9", "block10", "block11", "block12"]


def blocks(count: int, seed: int, width: int = 6) -> tuple[dict[str, NDArray], NDArray]:
    """Five blocks of features of three classes, each with noise of its own; the last ones tell the most."""
    _, labels = blobs(count, 1, 3, seed)
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(3, width))
    given = {
        name: (centres[labels] + spread * draw.normal(size=(count, width))).astype(np.float32)
        for name, spread in zip([*NAMES, "pooled"], [4, 3, 2, 1, 1.5], strict=True)
    }
    return given, labels


def test_dinov2_sweeps_52_heads() -> None:
    heads = heads_of(blocks(20, seed=1)[0], SgdSettings())
    assert len(heads) == len(set(heads)) == 52
    assert {head.blocks for head in heads} == {
        ("block12",),
        ("block12", "pooled"),
        tuple(NAMES),
        (*NAMES, "pooled"),
    }
    assert sorted({head.learning_rate for head in heads}) == RATES


def test_all_heads_at_once_equal_each_alone() -> None:
    features, labels = blocks(150, seed=1)
    heads = heads_of(features, SgdSettings())
    together = sgd_sweep(features, labels, 3, heads, steps=40, batch_size=32, seed=5)
    assert list(together) == list(heads)
    for head in heads[::3]:
        alone = sgd_sweep(features, labels, 3, [head], steps=40, batch_size=32, seed=5)[head]
        assert alone.shape == (3, sum(features[name].shape[1] for name in head.blocks) + 1)
        assert np.abs(together[head] - alone).max() < 1e-5, head


def test_a_head_is_plain_sgd() -> None:
    features, labels = blocks(64, seed=1)
    head = Head(0.05, ("block12", "pooled"))
    found = sgd_sweep(features, labels, 3, [head], steps=30, batch_size=64, seed=5)[head]
    start = sgd_sweep(features, labels, 3, [head], steps=0, batch_size=64, seed=5)[head]
    x = torch.from_numpy(np.hstack([features["block12"], features["pooled"]]))
    weights = torch.from_numpy(start).clone().requires_grad_()
    speed = torch.zeros_like(weights)
    for step in range(30):  # each batch is the whole set, so its order does not matter
        loss = torch.nn.functional.cross_entropy(x @ weights[:, :-1].T + weights[:, -1], torch.from_numpy(labels))
        (gradient,) = torch.autograd.grad(loss, weights)
        speed = 0.9 * speed + gradient
        with torch.no_grad():
            weights -= 0.05 * 64 / 256 * 0.5 * (1 + math.cos(math.pi * step / 30)) * speed
    assert np.abs(found - weights.detach().numpy()).max() < 1e-5
    assert 0.005 < start[:, :-1].std() < 0.02
    assert (start[:, -1] == 0).all()


def test_the_sweep_learns_and_the_seed_decides_it() -> None:
    features, labels = blocks(300, seed=1)
    queries, truth = blocks(300, seed=2)
    heads = heads_of(features, SgdSettings())
    found = sgd_sweep(features, labels, 3, heads, steps=200, batch_size=50, seed=5)
    shares = {head: (head_scores(found[head], queries, head).argmax(1) == truth).mean() for head in heads}
    assert shares[choose_head(shares)] > 0.8
    assert min(shares.values()) < shares[choose_head(shares)] - 0.1, "the sweep has something to choose"
    again = sgd_sweep(features, labels, 3, heads, steps=200, batch_size=50, seed=5)
    other = sgd_sweep(features, labels, 3, heads, steps=200, batch_size=50, seed=6)
    assert all(np.array_equal(found[head], again[head]) for head in heads)
    assert not any(np.array_equal(found[head], other[head]) for head in heads)


def test_ties_go_to_the_smaller_rate_then_to_fewer_blocks() -> None:
    few, many = ("block12",), ("block11", "block12")
    shares = {Head(0.1, few): 0.5, Head(0.01, many): 0.9, Head(0.1, many): 0.9, Head(0.01, few): 0.9}
    assert choose_head(shares) == Head(0.01, few)
    assert choose_head(dict(reversed(shares.items()))) == Head(0.01, few)
    assert choose_head({Head(0.1, few): 0.9, Head(0.01, many): 0.9}) == Head(0.01, many)


@pytest.mark.parametrize(("count", "batch"), [(10, 32), (33, 10)])
def test_every_sample_is_drawn_equally_often(count: int, batch: int) -> None:
    from pipeline.evaluate.evaluators.sgd import _batches

    drawn = np.concatenate(list(_batches(count, batch, 3 * count, seed=1)))
    assert len(drawn) == 3 * count * batch
    counts = np.bincount(drawn, minlength=count)
    assert counts.max() - counts.min() <= 1
