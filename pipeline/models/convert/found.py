"""The architecture of foreign weights, from the names and shapes of their tensors."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import SIZES, ViTConfig
from pipeline.models.convert.rows import Tensors

CHANNELS = 3


class Found:
    """The tensors of one file. Every question raises InputError, naming the tensor, when it has no answer."""

    def __init__(self, tensors: Tensors, where: str) -> None:
        self.tensors, self.where = tensors, where

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """The shape of tensor *name*, of *num_axes* axes."""
        if name not in self.tensors:
            raise InputError(f"{self.where}: tensors missing: {name}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != num_axes or 0 in shape:
            raise InputError(f"{self.where}: {name} is {shape}; it should have {num_axes} axes, none empty")
        return shape

    def depth(self, pattern: str) -> int:
        """How many blocks there are; *pattern* matches a tensor of block ``(\\d+)``."""
        numbers = {int(match[1]) for name in self.tensors if (match := re.match(pattern, name))}
        missing = set(range(max(numbers, default=0) + 1)) - numbers
        if missing:
            raise InputError(f"{self.where}: it has no tensors of block {min(missing)}")
        return len(numbers)

    def patch_size(self, name: str, rows: int, columns: int, channels: int) -> int:
        """The side of a patch, given the sizes of the axes of its projection *name*."""
        if rows != columns or channels != CHANNELS:
            raise InputError(
                f"{self.where}: {name} is of {rows} x {columns} patches and {channels} channels",
                "square patches of 3 channels are read",
            )
        return rows

    def grid(self, name: str) -> int:
        """The side of the grid of position embeddings *name*, whether or not the class token has one."""
        rows = self.shape(name, 3)[1]
        side = math.isqrt(rows)
        if side**2 != rows:
            side = math.isqrt(rows - 1)
        if side == 0 or rows - side**2 not in (0, 1):
            raise InputError(f"{self.where}: {name} has {rows} rows, which are no square grid")
        return side

    def heads(self, width: int, depth: int, mlp_width: int, given: int | None) -> int:
        """The number of heads: *given*, else that of the named size; a fused q, k, v tensor does not tell it."""
        known = {shape[:3]: shape[3] for shape in SIZES.values()}
        heads = given or known.get((width, depth, mlp_width))
        if heads is None:
            told = f"width {width}, depth {depth}, MLP {mlp_width}"
            raise InputError(
                f"{self.where}: no named size has {told}, so its number of heads is not known", "add --heads N"
            )
        return heads

    def config(self, **fields: Any) -> ViTConfig:
        """The configuration of *fields*."""
        try:
            return ViTConfig.model_validate(fields)
        except ValidationError as error:
            told = error.errors()[0]
            raise InputError(
                f"{self.where}: {'.'.join(map(str, told['loc']))} {told['msg']}".replace("Value error, ", "")
            ) from None


def with_class_row(positions_1ND: Tensor, grid: int) -> Tensor:
    """(1, N, D) -> (1, N+1, D) where the class token has no row yet: it gets one of zeros, which adds nothing."""
    if positions_1ND.shape[1] != grid**2:
        return positions_1ND
    return torch.cat([torch.zeros_like(positions_1ND[:, :1]), positions_1ND], dim=1)
