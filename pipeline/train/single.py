"""An engine for one process: plain torch. Fine-tuning uses it, and tests compare DeepSpeed with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.train.recipe import OptimizerRecipe


@dataclass(frozen=True)
class StepResult:
    """Mean loss over the global batch, and the norm of its gradient before clipping."""

    loss: float
    grad_norm: float


class Engine(Protocol):
    """Owns the weights and their update."""

    @property
    def module(self) -> nn.Module:
        """The network to call in the forward pass."""

    @property
    def dtype(self) -> torch.dtype:
        """What the network's input has to be."""

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """One update from the mean of *losses*: one callable per micro-batch, each doing its forward pass."""


def make_optimizer(
    module: nn.Module, recipe: OptimizerRecipe, decayed: Callable[[str, Tensor], bool]
) -> torch.optim.Optimizer:
    """The optimizer with two groups: parameters that weight decay touches, and the rest."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if decayed(name, p)], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in named if not decayed(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.epsilon)


class SingleEngine:
    """Updates in float32, in this process."""

    dtype = torch.float32

    def __init__(
        self, module: nn.Module, recipe: OptimizerRecipe, decayed: Callable[[str, Tensor], bool] = lambda *_: True
    ) -> None:
        self.module = module
        self._clip = recipe.clip
        self._optimizer = make_optimizer(module, recipe, decayed)

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """See Engine."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        parts = list(losses)
        total = 0.0
        for part in parts:
            loss = part() / len(parts)
            loss.backward()
            total += loss.item()
        limit = self._clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        self._optimizer.step()
        return StepResult(total, float(norm))
