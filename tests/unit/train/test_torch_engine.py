"""The plain engine against AdamW and SGD written out by hand, and micro-batches against the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pipeline.train.recipe import OptimizerRecipe
from pipeline.train.torch_engine import TorchEngine

RATES = (0.01, 0.03, 0.02)


def network() -> nn.Sequential:
    """A small network with matrices and vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(step: int, count: int = 12) -> tuple[Tensor, Tensor]:
    """Seeded inputs and labels of a step."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


def loss_of(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(module(inputs), labels)


def is_matrix(_: str, parameter: Tensor) -> bool:
    """What decay touches."""
    return parameter.ndim == 2


def gradients(weights: list[Tensor], step: int) -> tuple[float, list[Tensor], float]:
    """Loss, gradients, and their global norm at *weights*, without the modules of torch.nn."""
    inputs, labels = data(step)
    leaves = [weight.detach().requires_grad_() for weight in weights]
    w1, b1, w2, b2 = leaves
    logits = torch.tanh(inputs @ w1.T + b1) @ w2.T + b2
    loss = -(logits.log_softmax(1)[torch.arange(len(labels)), labels]).mean()
    found = list(torch.autograd.grad(loss, leaves))
    return loss.item(), found, float(torch.sqrt(sum(g.square().sum() for g in found)))


def adamw_by_hand(weights: list[Tensor], recipe: OptimizerRecipe, steps: int) -> list[Tensor]:
    """Loshchilov & Hutter, with decay multiplied by the rate and clipping before."""
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        _, found, norm = gradients(weights, step)
        share = min(1.0, recipe.clip / (norm + 1e-6)) if recipe.clip else 1.0
        for at, gradient in enumerate(found):
            g = gradient * share
            first[at] = recipe.beta1 * first[at] + (1 - recipe.beta1) * g
            second[at] = recipe.beta2 * second[at] + (1 - recipe.beta2) * g**2
            m, v = first[at] / (1 - recipe.beta1 ** (step + 1)), second[at] / (1 - recipe.beta2 ** (step + 1))
            decay = recipe.weight_decay if weights[at].ndim == 2 else 0.0
            weights[at] = weights[at] * (1 - RATES[step] * decay) - RATES[step] * m / (v.sqrt() + recipe.epsilon)
    return weights


def sgd_by_hand(weights: list[Tensor], recipe: OptimizerRecipe, steps: int) -> list[Tensor]:
    """Heavy-ball momentum as torch defines it: velocity = momentum * velocity + gradient."""
    velocity = [torch.zeros_like(w) for w in weights]
    for step in range(steps):
        _, found, norm = gradients(weights, step)
        share = min(1.0, recipe.clip / (norm + 1e-6)) if recipe.clip else 1.0
        for at, gradient in enumerate(found):
            decay = recipe.weight_decay if weights[at].ndim == 2 else 0.0
            velocity[at] = recipe.momentum * velocity[at] + gradient * share + decay * weights[at]
            weights[at] = weights[at] - RATES[step] * velocity[at]
    return weights


@pytest.mark.parametrize("clip", [0.0, 0.05, 100.0])
@pytest.mark.parametrize(("name", "by_hand"), [("adamw", adamw_by_hand), ("sgd", sgd_by_hand)])
def test_three_updates_equal_those_by_hand(name: str, by_hand: Callable[..., list[Tensor]], clip: float) -> None:
    recipe = OptimizerRecipe(name=name, learning_rate=9.0, weight_decay=0.3, beta1=0.8, beta2=0.9, clip=clip)
    module = network()
    expected = by_hand([parameter.detach().clone() for parameter in module.parameters()], recipe, 3)
    engine = TorchEngine(module, recipe, is_matrix)
    for step, rate in enumerate(RATES):
        loss, _, norm = gradients([parameter.detach().clone() for parameter in module.parameters()], step)
        result = engine.update([partial(loss_of, module, *data(step))], rate)
        assert result.loss == pytest.approx(loss, rel=1e-12)
        assert result.grad_norm == pytest.approx(norm, rel=1e-12), "the norm is the one before clipping"
    for parameter, wanted in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro", [1, 3, 6])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_micro_batches_equal_the_whole_batch(name: str, micro: int) -> None:
    recipe = OptimizerRecipe(name=name, clip=0.5)
    curves = []
    for size in (12, micro):
        module = network().float()
        engine = TorchEngine(module, recipe, is_matrix)
        for step, rate in enumerate(RATES):
            inputs, labels = data(step)
            pieces = zip(inputs.float().split(size), labels.split(size), strict=True)
            result = engine.update([partial(loss_of, module, *piece) for piece in pieces], rate)
            curves.append((result.loss, result.grad_norm))
    assert [value for row in curves[3:] for value in row] == pytest.approx(
        [value for row in curves[:3] for value in row], rel=1e-5
    )


def test_frozen_parameters_stay() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    TorchEngine(module, OptimizerRecipe()).update([partial(loss_of, module, *data(0))], 0.1)
    changed = [not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)]
    assert changed == [False, True, True, True]
