"""The only door to DeepSpeed: an engine over ZeRO 0-3, its checkpoint files, and its full float32 weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.logging import logger as deepspeed_logger
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe, accumulation
from pipeline.train.single import StepResult, make_optimizer

_TAG = "state"  # the one tag inside a checkpoint's scratch folder

# Offers DeepSpeed no operator to compile: it would take up to a minute over an all-reduce that only its inference
# calls, needs g++ for it, and a rank killed meanwhile leaves a lock that every later start waits for, without end.
deepspeed.ops.__compatible_ops__ = {}


class DeepSpeedEngine:
    """Updates partitioned over the ranks of the default process group."""

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
        self.dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self._zero_stage = recipe.zero_stage
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(module, optimizer, decayed),
            config=deepspeed_config(optimizer, recipe, batch_size, world.size),
        )

    @property
    def module(self) -> nn.Module:
        """See Engine."""
        engine: nn.Module = self._engine
        return engine

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """See Engine. The loss is the mean over all ranks, so every rank sees the same number."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
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
        return StepResult(mean.item() / dist.get_world_size(), float(norm) if norm is not None else float("nan"))

    def _plain_norm(self) -> Tensor | None:
        """The gradient's norm where nothing is partitioned: there DeepSpeed clips by it, and forgets it."""
        if self._has_masters or not self._engine.is_gradient_accumulation_boundary():
            return None
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def write_state(self, folder: Path) -> None:
        """Write this rank's files of a checkpoint below *folder*. Every rank has to call it."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def read_state(self, folder: Path) -> None:
        """Load this rank's files, which :func:`state_folder` of *folder* holds. Every rank has to call it.

        The files are pickles: the caller has verified that they are the own run's.
        """
        self._engine.load_checkpoint(str(folder), tag=_TAG)

    def full_weights(self) -> dict[str, Tensor]:
        """The float32 weights, whole, by name, on every rank."""
        weights = {}
        for name, parameter in self._engine.module.named_parameters():
            full = safe_get_full_fp32_param(parameter) if self._has_masters else parameter.detach()
            weights[name] = full.to(torch.float32).cpu().clone()
        return weights

    @property
    def _has_masters(self) -> bool:
        return self._zero_stage > 0 or self.dtype != torch.float32


def state_folder(folder: Path) -> Path:
    """Where DeepSpeed looks for the files of a checkpoint that is loaded from *folder*."""
    return folder / _TAG


def deepspeed_config(
    optimizer: OptimizerRecipe, recipe: EngineRecipe, batch_size: int, world_size: int
) -> dict[str, Any]:
    """DeepSpeed's configuration, whole and explicit: its defaults (clipping 1.0, for one) are not relied on."""
    micro, steps = accumulation(batch_size, world_size, recipe.micro_batch_size)
    return {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "zero_optimization": {"stage": recipe.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
