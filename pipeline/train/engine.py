"""The only door to DeepSpeed: an engine over ZeRO 0-3."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable

os.environ.setdefault("DS_ACCELERATOR", "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils.logging import logger as deepspeed_logger
from torch import Tensor, nn

from pipeline.base.errors import RecipeError
from pipeline.base.world import World
from pipeline.checkpoints.fragments import Fragment, FragmentReader
from pipeline.train.engine_config import deepspeed_config
from pipeline.train.engine_layout import layout_of, shapes_of, trained
from pipeline.train.holding import Holding
from pipeline.train.pieces import Shapes
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe
from pipeline.train.single import StepResult, make_optimizer, set_rates

# Offers DeepSpeed no operator to compile: it would take up to a minute over an all-reduce that only its inference
# calls, needs g++ for it, and a rank killed meanwhile leaves a lock that every later start waits for, without end.
deepspeed.ops.__compatible_ops__ = {}

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class DeepSpeedEngine:
    """Updates partitioned over the ranks of the default process group; float32 weights whatever the precision."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerRecipe,
        recipe: EngineRecipe,
        batch_size: int,
        world: World,
        decayed: Callable[[str, Tensor], bool],
    ) -> None:
        deepspeed_logger.setLevel(logging.ERROR)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        if recipe.precision == "fp16" and not get_accelerator().is_fp16_supported():
            raise RecipeError(["engine.precision: this device computes no fp16; bf16 needs no loss scale either"])
        self.dtype = _DTYPES[recipe.precision]
        self._is_plain = recipe.zero_stage == 0 and recipe.precision == "fp32"
        first = {name: parameter.detach() for name, parameter in trained(module).items()}
        size = sum(weight.numel() for weight in first.values())
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(module, optimizer, decayed),
            config=deepspeed_config(optimizer, recipe, batch_size, world.size, size),
        )
        wrapper = self._engine.optimizer
        self._layout = layout_of(self._engine.module, wrapper, recipe.zero_stage, world)
        shapes, base = shapes_of(self._engine.module), getattr(wrapper, "optimizer", wrapper)
        self._holding = Holding(shapes, self._layout.held, self._layout.given, base, optimizer.ema)
        if self.dtype != torch.float32:
            self._holding.start_from(first)  # DeepSpeed has made its float32 weights of the rounded ones

    @property
    def module(self) -> nn.Module:
        """See Engine."""
        engine: nn.Module = self._engine
        return engine

    @property
    def updates(self) -> int:
        """See Engine."""
        return self._holding.updates

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """See Engine. The loss is the mean over all ranks, so every rank sees the same number.

        Where a gradient is not finite DeepSpeed leaves the weights as they are; nor is the norm that is told.
        """
        set_rates(self._engine.optimizer, learning_rate)
        parts: list[Tensor] = []
        norm: Tensor | float | None = None
        for part in losses:
            loss = part()
            self._engine.backward(loss)
            norm = self._plain_norm()
            self._engine.step()
            parts.append(loss.detach().float())
        mean = torch.stack(parts).mean()
        dist.all_reduce(mean)
        if norm is None:
            norm = self._engine.get_global_grad_norm()
        if self._engine.was_step_applied():
            self._holding.updated()
        return StepResult(mean.item() / dist.get_world_size(), float(norm) if norm is not None else float("nan"))

    def shapes(self) -> Shapes:
        """See Engine."""
        return self._holding.shapes

    def fragments(self) -> list[Fragment]:
        """See Engine."""
        return self._holding.fragments()

    def load(self, reader: FragmentReader) -> None:
        """See Engine."""
        self._holding.fill(reader)
        self._layout.refresh()

    def _plain_norm(self) -> Tensor | None:
        """The gradient's norm where DeepSpeed has no optimizer of its own: there it clips by it, and forgets it."""
        if not self._is_plain or not self._engine.is_gradient_accumulation_boundary():
            return None
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)
