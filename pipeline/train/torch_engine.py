"""What an engine is, and the one for a single process: plain torch.

Fine-tuning uses it, and tests compare DeepSpeed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.checkpoints.state import Fragment, FragmentReader
from pipeline.train.optimizer import make_optimizer, prepare_state, set_rates
from pipeline.train.recipe import OptimizerRecipe
from pipeline.train.train_state import Shapes, TrainState, state_shard_of


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

    @property
    def updates(self) -> int:
        """How many updates are done (Adam's ``step``)."""

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """One update from the mean of *losses*: one callable per micro-batch, each doing its forward pass.

        The rate of a group of parameters is *learning_rate* times the group's ``lr_scale``.
        """

    def shapes(self) -> Shapes:
        """The whole shape of every trained parameter, by name."""

    def fragments(self) -> list[Fragment]:
        """This rank's part of the float32 state: views, which the next update changes.

        The ranks together cover every (kind, name) exactly once. The kinds are those of the weights, of what the
        optimizer keeps, and of the moving average where the recipe has one.
        """

    def load(self, reader: FragmentReader) -> None:
        """Set the state bit for bit to what *reader* has; the weights of the forward pass follow. All ranks call it.

        Raises MismatchError when the parameters are others.
        """


class TorchEngine:
    """Updates float32 weights in this process. *autocast*: the forward pass computes in bfloat16 where that is safe."""

    dtype = torch.float32

    def __init__(
        self,
        module: nn.Module,
        recipe: OptimizerRecipe,
        decayed: Callable[[str, Tensor], bool] = lambda *_: True,
        *,
        autocast: bool = False,
    ) -> None:
        self.module = module
        self._clip, self._autocast = recipe.clip, autocast
        self._optimizer = make_optimizer(module, recipe, decayed)
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        prepare_state(self._optimizer, named.values())
        shards = [state_shard_of(self._optimizer, name, 0, parameter) for name, parameter in named.items()]
        shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        self._state = TrainState(shapes, shards, shards, self._optimizer, recipe.ema)

    @property
    def updates(self) -> int:
        """See Engine."""
        return self._state.updates

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """See Engine."""
        set_rates(self._optimizer, learning_rate)
        self._optimizer.zero_grad(set_to_none=True)
        parts = list(losses)
        total = 0.0
        for part in parts:
            with self._precision():
                loss = part() / len(parts)
            loss.backward()
            total += loss.item()
        limit = self._clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        self._optimizer.step()
        self._state.updated()
        return StepResult(total, float(norm))

    def shapes(self) -> Shapes:
        """See Engine."""
        return self._state.shapes

    def fragments(self) -> list[Fragment]:
        """See Engine."""
        return self._state.fragments()

    def load(self, reader: FragmentReader) -> None:
        """See Engine."""
        self._state.fill(reader)

    def _precision(self) -> AbstractContextManager[object]:
        if not self._autocast:
            return nullcontext()
        device = next(self.module.parameters()).device.type
        return torch.autocast(device, torch.bfloat16)
