"""Where DeepSpeed 0.19 keeps this rank's float32 weights and what the optimizer keeps of them, by stage and precision.

==================  ===========================================================================================
stage 0, fp32       the parameters themselves, the same on all ranks
stage 0, bf16       ``FP16_UnfusedOptimizer``: ``fp32_groups`` beside ``fp16_groups``, the same on all ranks
stages 1 and 2      ``DeepSpeedZeroOptimizer``, or ``BF16_Optimizer`` (stage 1, bf16 accumulated in float32): one
                    flat partition per group; ``_hp_mapping`` of a parameter says which of its elements are there
stage 3             ``DeepSpeedZeroOptimizer_Stage3``: of every parameter ceil(n / world) elements, the last ranks'
                    padded; ``grad_position`` says where
==================  ===========================================================================================

This knows DeepSpeed by its attributes only and does not import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.base.world import World
from pipeline.train.pieces import Piece, Shapes, piece_of, prepare_state


class Layout(Protocol):
    """One of the cases above."""

    held: list[Piece]
    given: list[Piece]

    def refresh(self) -> None:
        """The float32 weights were set from outside: the weights of the forward pass follow. All ranks call it."""


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def shapes_of(module: nn.Module) -> Shapes:
    """Whole shapes; of partitioned parameters too."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in trained(module).items()}


class Replicated:
    """Stage 0: every rank holds everything and contributes its share. *wrapper* is DeepSpeed's optimizer."""

    def __init__(self, module: nn.Module, wrapper: Any, world: World) -> None:
        optimizer = getattr(wrapper, "optimizer", wrapper)
        self._pairs = [pair for groups in _pairs(wrapper) for pair in groups]
        masters = {id(low): master for low, master in self._pairs}
        named = {name: masters.get(id(p), p) for name, p in trained(module).items()}
        prepare_state(optimizer, named.values())
        self.held = [piece_of(optimizer, name, 0, master) for name, master in named.items()]
        shares = [piece.share(world.rank, world.size) for piece in self.held]
        self.given = [share for share in shares if share is not None]

    @torch.no_grad()
    def refresh(self) -> None:
        """See Layout."""
        for low, master in self._pairs:
            low.copy_(master)


def _named(module: nn.Module) -> Iterable[tuple[str, Any]]:
    """The trained parameters, with what DeepSpeed adds to them."""
    return trained(module).items()


def _pairs(wrapper: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(weight of the forward pass, its float32 master), where the two differ."""
    for low, masters in zip(getattr(wrapper, "fp16_groups", []), getattr(wrapper, "fp32_groups", []), strict=True):
        yield list(zip(low, masters, strict=True))


class FlatPartitions:
    """Stages 1 and 2: a group of parameters is one flat vector, of which each rank holds an equal part."""

    def __init__(self, module: nn.Module, wrapper: Any) -> None:
        self._wrapper = wrapper
        optimizer = wrapper.optimizer
        partitions = [group["params"][0] for group in optimizer.param_groups]
        prepare_state(optimizer, partitions)
        self.held = [
            piece_of(
                optimizer,
                name,
                mapping.lp_fragment_address.start,
                partitions[mapping.param_group_index],
                mapping.hp_fragment_address.start,
                mapping.hp_fragment_address.numel,
            )
            for name, parameter in _named(module)
            if (mapping := parameter._hp_mapping) is not None  # None: no element of it is on this rank
        ]
        self.given = self.held

    def refresh(self) -> None:
        """See Layout."""
        self._wrapper.update_lp_params()  # with the all-gather that ends every update


class ParameterPartitions:
    """Stage 3: of every parameter each rank holds an equal part."""

    def __init__(self, module: nn.Module, wrapper: Any) -> None:
        self._wrapper = wrapper
        optimizer, masters = wrapper.optimizer, wrapper.fp32_partitioned_groups_flat
        prepare_state(optimizer, masters)
        self.held = []
        for name, parameter in _named(module):
            group, offset, size = wrapper.grad_position[wrapper.get_param_id(parameter)]
            start = size * torch.distributed.get_rank(parameter.ds_process_group)
            count = min(size, parameter.ds_numel - start)  # what is left is padding
            if count > 0:
                self.held.append(piece_of(optimizer, name, start, masters[group], offset, count))
        self.given = self.held

    def refresh(self) -> None:
        """See Layout. What every update ends with: partitions from the masters, then the small parameters whole."""
        self._wrapper._partition_all_parameters()
        for group in range(len(self._wrapper.fp16_groups)):
            self._wrapper._reassign_or_swap_out_partitioned_parameters(group)
        kept_whole = self._wrapper.persistent_parameters
        if kept_whole:
            kept_whole[0].all_gather(kept_whole)


def layout_of(module: nn.Module, wrapper: Any, zero_stage: int, world: World) -> Layout:
    """The layout of *module* under DeepSpeed's optimizer *wrapper*."""
    if zero_stage == 0:
        return Replicated(module, wrapper, world)
    return FlatPartitions(module, wrapper) if zero_stage < 3 else ParameterPartitions(module, wrapper)
