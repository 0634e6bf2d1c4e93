"""The only door to DeepSpeed: an engine over ZeRO 0-3.

DeepSpeed 0.19 keeps this rank's float32 weights, and what the optimizer keeps of them, by stage and precision:

==================  ===========================================================================================
stage 0, fp32       the parameters themselves, the same on all ranks
stage 0, bf16       ``FP16_UnfusedOptimizer``: ``fp32_groups`` beside ``fp16_groups``, the same on all ranks
stages 1 and 2      ``DeepSpeedZeroOptimizer``, or ``BF16_Optimizer`` (stage 1, bf16 accumulated in float32): one
                    flat partition per group; ``_hp_mapping`` of a parameter says which of its elements are there
stage 3             ``DeepSpeedZeroOptimizer_Stage3``: of every parameter ceil(n / world) elements, the last ranks'
                    padded; ``grad_position`` says where
==================  ===========================================================================================

The layouts know DeepSpeed's objects by these attributes only.
"""

from __future__ import annotations

import logging
import os

# Before deepspeed is imported, which picks its accelerator then.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu")

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils.logging import logger as deepspeed_logger
from torch import Tensor, nn

from pipeline.base.errors import RecipeError
from pipeline.base.world import World
from pipeline.checkpoints.state import Fragment, FragmentReader
from pipeline.train.deepspeed_config import deepspeed_config
from pipeline.train.optimizer import make_optimizer, prepare_state, set_rates
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe
from pipeline.train.torch_engine import StepResult
from pipeline.train.train_state import Shapes, StateShard, TrainState, state_shard_of

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Offers DeepSpeed no operator to compile: it would take up to a minute over an all-reduce that only its inference
# calls, needs g++ for it, and a rank killed meanwhile leaves a lock that every later start waits for, without end.
deepspeed.ops.__compatible_ops__ = {}


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
        first = {name: parameter.detach() for name, parameter in _trained(module).items()}
        size = sum(weight.numel() for weight in first.values())
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(module, optimizer, decayed),
            config=deepspeed_config(optimizer, recipe, batch_size, world.size, size),
        )
        wrapper = self._engine.optimizer
        self._layout = _layout_of(self._engine.module, wrapper, recipe.zero_stage, world)
        shapes, base = _shapes_of(self._engine.module), getattr(wrapper, "optimizer", wrapper)
        self._state = TrainState(shapes, self._layout.shards, self._layout.contributed, base, optimizer.ema)
        if self.dtype != torch.float32:
            self._state.start_from(first)  # DeepSpeed has made its float32 weights of the rounded ones

    @property
    def module(self) -> nn.Module:
        """See Engine."""
        engine: nn.Module = self._engine
        return engine

    @property
    def updates(self) -> int:
        """See Engine."""
        return self._state.updates

    def update(self, losses: Iterable[Callable[[], Tensor]], learning_rate: float) -> StepResult:
        """See Engine. The loss is the mean over all ranks, so every rank sees the same number.

        Where a gradient is not finite DeepSpeed leaves the weights as they are, and the norm is not finite either.
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
            self._state.updated()
        return StepResult(mean.item() / dist.get_world_size(), float(norm) if norm is not None else float("nan"))

    def shapes(self) -> Shapes:
        """See Engine."""
        return self._state.shapes

    def fragments(self) -> list[Fragment]:
        """See Engine."""
        return self._state.fragments()

    def load(self, reader: FragmentReader) -> None:
        """See Engine."""
        self._state.fill(reader)
        self._layout.refresh()

    def _plain_norm(self) -> Tensor | None:
        """The gradient's norm where DeepSpeed has no optimizer of its own: there it clips by it, and forgets it."""
        if not self._is_plain or not self._engine.is_gradient_accumulation_boundary():
            return None
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)


class Layout(Protocol):
    """Where one of these cases keeps the state. *shards*, *contributed*: see TrainState."""

    shards: list[StateShard]
    contributed: list[StateShard]

    def refresh(self) -> None:
        """The float32 weights were set from outside: the weights of the forward pass follow. All ranks call it."""


def _trained(module: nn.Module) -> dict[str, Any]:
    """The parameters that are trained, by name, with what DeepSpeed adds to them."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _shapes_of(module: nn.Module) -> Shapes:
    """Of whole parameters, also where they are partitioned."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in _trained(module).items()}


class Zero0Layout:
    """Stage 0: every rank has everything and contributes its share. *wrapper* is DeepSpeed's optimizer."""

    def __init__(self, module: nn.Module, wrapper: Any, world: World) -> None:
        optimizer = getattr(wrapper, "optimizer", wrapper)
        self._pairs = [pair for groups in _pairs(wrapper) for pair in groups]
        masters = {id(low): master for low, master in self._pairs}
        named = {name: masters.get(id(p), p) for name, p in _trained(module).items()}
        prepare_state(optimizer, named.values())
        self.shards = [state_shard_of(optimizer, name, 0, master) for name, master in named.items()]
        shares = [shard.share(world.rank, world.size) for shard in self.shards]
        self.contributed = [share for share in shares if share is not None]

    @torch.no_grad()
    def refresh(self) -> None:
        """See Layout."""
        for low, master in self._pairs:
            low.copy_(master)


def _pairs(wrapper: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(weight of the forward pass, its float32 master), where the two differ."""
    for low, masters in zip(getattr(wrapper, "fp16_groups", []), getattr(wrapper, "fp32_groups", []), strict=True):
        yield list(zip(low, masters, strict=True))


class Zero12Layout:
    """Stages 1 and 2: a group of parameters is one flat vector, of which each rank has an equal part."""

    def __init__(self, module: nn.Module, wrapper: Any) -> None:
        self._wrapper = wrapper
        optimizer = wrapper.optimizer
        partitions = [group["params"][0] for group in optimizer.param_groups]
        prepare_state(optimizer, partitions)
        self.shards = [
            state_shard_of(
                optimizer,
                name,
                mapping.lp_fragment_address.start,
                partitions[mapping.param_group_index],
                mapping.hp_fragment_address.start,
                mapping.hp_fragment_address.numel,
            )
            for name, parameter in _trained(module).items()
            if (mapping := parameter._hp_mapping) is not None  # None: no element of it is on this rank
        ]
        self.contributed = self.shards

    def refresh(self) -> None:
        """See Layout."""
        self._wrapper.update_lp_params()  # with the all-gather that ends every update


class Zero3Layout:
    """Stage 3: of every parameter each rank has an equal part."""

    def __init__(self, module: nn.Module, wrapper: Any) -> None:
        self._wrapper = wrapper
        optimizer, masters = wrapper.optimizer, wrapper.fp32_partitioned_groups_flat
        prepare_state(optimizer, masters)
        self.shards = []
        for name, parameter in _trained(module).items():
            group, offset, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
            start = size * dist.get_rank(parameter.ds_process_group)
            count = min(size, parameter.ds_numel - start)  # what is left is padding
            if count > 0:
                self.shards.append(state_shard_of(optimizer, name, start, masters[group], offset, count))
        self.contributed = self.shards

    def refresh(self) -> None:
        """See Layout. What every update ends with: partitions from the masters, then the small parameters whole."""
        self._wrapper._partition_all_parameters()
        for group in range(len(self._wrapper.fp16_groups)):
            self._wrapper._reassign_or_swap_out_partitioned_parameters(group)
        unpartitioned = self._wrapper.persistent_parameters
        if unpartitioned:
            unpartitioned[0].all_gather(unpartitioned)


def _layout_of(module: nn.Module, wrapper: Any, zero_stage: int, world: World) -> Layout:
    """The layout of *module* under DeepSpeed's optimizer *wrapper*."""
    if zero_stage == 0:
        return Zero0Layout(module, wrapper, world)
    return Zero12Layout(module, wrapper) if zero_stage < 3 else Zero3Layout(module, wrapper)
