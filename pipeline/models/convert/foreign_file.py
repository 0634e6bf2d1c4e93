"""Read foreign files of tensors, and derive an architecture from tensor names and shapes.

Nothing in a file is run: safetensors, npz without pickles, of torch's files plain tensors alone.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import SIZES, ViTConfig
from pipeline.models.convert.tensor_map import CHANNELS, Tensors

_TORCH_SUFFIXES = (".bin", ".pth", ".pt")
_NESTED = ("model", "state_dict")  # where training scripts put the weights: DeiT's, Lightning's


def read_tensors(data: bytes, source_name: str) -> dict[str, Tensor]:
    """The tensors of the file *data*; the suffix of *source_name* says of which kind it is.

    Raises InputError for a file of another kind, and for a damaged one.
    """
    if source_name.endswith(".npz"):
        return _read_npz(data, source_name)
    if source_name.endswith(".safetensors"):
        try:
            return dict(load_safetensors(data))
        except SafetensorError as error:
            raise InputError(f"{source_name} is no safetensors file: {error}") from None
    if source_name.endswith(_TORCH_SUFFIXES):
        return _read_torch(data, source_name)
    raise InputError(f"{source_name}: files of this kind are not read", "give .npz, .safetensors, .bin or .pth")


def _read_npz(data: bytes, source_name: str) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, no archive")
            return {name: _tensor(archive[name], f"{source_name}: {name}") for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{source_name} is no npz file of plain arrays: {str(error).splitlines()[0]}") from None


def _tensor(array: np.ndarray[Any, Any], source_name: str) -> Tensor:
    """bfloat16 comes out of numpy as two raw bytes an element; big_vision writes such files."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{source_name} is of {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _read_torch(data: bytes, source_name: str) -> dict[str, Tensor]:
    try:
        tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{source_name} is no file of plain tensors ({type(error).__name__})",
            "save it as .safetensors where it was made",
        ) from None
    for name in _NESTED:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise InputError(f"{source_name} holds more than tensors by name", "save the state_dict alone")
    return {str(name): value for name, value in tree.items()}


class ForeignTensors:
    """The tensors of one file, and what their names and shapes imply.

    Each method raises InputError, naming the tensor, where they imply nothing.
    """

    def __init__(self, tensors: Tensors, source_name: str) -> None:
        self.tensors, self.source_name = tensors, source_name

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """The shape of tensor *name*, of *num_axes* axes."""
        if name not in self.tensors:
            raise InputError(f"{self.source_name}: tensors missing: {name}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != num_axes or 0 in shape:
            raise InputError(f"{self.source_name}: {name} is {shape}; it should have {num_axes} axes, none empty")
        return shape

    def depth(self, pattern: str) -> int:
        """How many blocks there are; *pattern* matches a tensor of block ``(\\d+)``."""
        numbers = {int(match[1]) for name in self.tensors if (match := re.match(pattern, name))}
        missing = set(range(max(numbers, default=0) + 1)) - numbers
        if missing:
            raise InputError(f"{self.source_name}: it has no tensors of block {min(missing)}")
        return len(numbers)

    def patch_size(self, name: str, rows: int, columns: int, channels: int) -> int:
        """The side of a patch, given the sizes of the axes of its projection *name*."""
        if rows != columns or channels != CHANNELS:
            raise InputError(
                f"{self.source_name}: {name} is of {rows} x {columns} patches and {channels} channels",
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
            raise InputError(f"{self.source_name}: {name} has {rows} rows, which are no square grid")
        return side

    def heads(self, width: int, depth: int, mlp_width: int, stated: int | None) -> int:
        """The number of heads: *stated*, else that of the named size; a fused q, k, v tensor does not imply it."""
        known = {shape[:3]: shape[3] for shape in SIZES.values()}
        heads = stated or known.get((width, depth, mlp_width))
        if heads is None:
            sizes = f"width {width}, depth {depth}, MLP {mlp_width}"
            raise InputError(
                f"{self.source_name}: no named size has {sizes}, so its number of heads is not known", "add --heads N"
            )
        return heads

    def config(self, **fields: Any) -> ViTConfig:
        """The configuration of *fields*, checked."""
        try:
            return ViTConfig.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"{self.source_name}: {'.'.join(map(str, first['loc']))} {first['msg']}".replace("Value error, ", "")
            ) from None


def with_class_row(positions_1ND: Tensor, grid: int) -> Tensor:
    """(1, N, D) -> (1, N+1, D) where the class token has no row yet: it gets one of zeros, which adds nothing."""
    if positions_1ND.shape[1] != grid**2:
        return positions_1ND
    return torch.cat([torch.zeros_like(positions_1ND[:, :1]), positions_1ND], dim=1)
