"""Files of tensors. Nothing in them is run: safetensors, npz without pickles, of torch's files plain tensors alone."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.base.errors import InputError

TORCH_SUFFIXES = (".bin", ".pth", ".pt")
_NESTED = ("model", "state_dict")  # where training scripts put the weights: DeiT's, Lightning's


def read_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of the file *data*, by the suffix of *where*. Raises InputError for any other or damaged file."""
    if where.endswith(".npz"):
        return _read_npz(data, where)
    if where.endswith(".safetensors"):
        try:
            return dict(load_safetensors(data))
        except SafetensorError as error:
            raise InputError(f"{where} is no safetensors file: {error}") from None
    if where.endswith(TORCH_SUFFIXES):
        return _read_torch(data, where)
    raise InputError(f"{where}: files of this kind are not read", "give .npz, .safetensors, .bin or .pth")


def _read_npz(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, no archive")
            return {name: _tensor(archive[name], f"{where}: {name}") for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{where} is no npz file of plain arrays: {str(error).splitlines()[0]}") from None


def _tensor(array: np.ndarray[Any, Any], where: str) -> Tensor:
    """bfloat16 comes out of numpy as two raw bytes an element; big_vision writes such files."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where} is of {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _read_torch(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{where} is no file of plain tensors ({type(error).__name__})", "save it as .safetensors where it was made"
        ) from None
    for name in _NESTED:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise InputError(f"{where} holds more than tensors by name", "save the state_dict alone")
    return {str(name): value for name, value in tree.items()}
