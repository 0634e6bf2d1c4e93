"""The official checkpoints (``.npz``): vision_transformer and AugReg, and big_vision.

Names of vision_transformer are those of its Flax modules (vit_jax/models_vit.py), in the numbering of the published
files; big_vision's (models/vit.py) number a block's modules by kind and keep the positions beside the Transformer, or,
before 2022, in it. Dense kernels are (in, out), q, k, v (D, H, E), the output of attention (H, E, D), patches
(P, P, C, D). The JAX code has GELU by tanh and norms with epsilon 1e-6, which a file does not tell: so it is read, and
nothing else is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig
from pipeline.models.convert.foreign_file import ForeignTensors, with_class_row
from pipeline.models.convert.tensor_map import (
    CHANNELS,
    ConvertedWeights,
    TensorMapping,
    Tensors,
    from_foreign,
    permuted,
    same,
    to_foreign,
    whole_state,
)
from pipeline.models.vit import ViT

_BLOCK = "Transformer/encoderblock_{}"
_POSITIONS = "Transformer/posembed_input/pos_embedding"
_OTHER_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")  # big_vision: now, and before 2022
_PREFIX = "params/"  # of big_vision's training checkpoints


@dataclass(frozen=True)
class _Numbers:
    """How the modules of a block are called."""

    norm1: str
    attention: str
    norm2: str
    mlp: str


_OFFICIAL = _Numbers("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
_BIG_VISION = _Numbers("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def export_npz(model: ViT) -> dict[str, NDArray[np.float32]]:
    """The arrays of a file in vision_transformer's naming. Raises InputError for what the JAX code does not compute.

    Fixed positions are left out, which is how big_vision (``posemb="sincos2d"``) has them.
    """
    config = model.config
    if config.gelu != "tanh" or config.norm_epsilon != 1e-6:
        raise InputError(
            f"npz is for GELU by tanh and epsilon 1e-06; this network has {config.gelu} and {config.norm_epsilon:g}",
            "export it as hf or timm",
        )
    tensors = to_foreign(_rows(config, _OFFICIAL), whole_state(model))
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


def import_npz(tensors: Tensors, where: str, image_size: int = 224) -> ConvertedWeights:
    """Of a file in any of the three namings. *image_size* is for fixed positions, which do not tell it."""
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    for other in _OTHER_POSITIONS:
        if other in named:
            named[_POSITIONS] = named.pop(other)
    found = ForeignTensors(named, where)
    first = _BLOCK.format(0)
    numbers = _BIG_VISION if f"{first}/LayerNorm_1/scale" in named else _OFFICIAL
    config = _config(found, f"{first}/{numbers.attention}", f"{first}/{numbers.mlp}", image_size)
    if config.pool == "cls" and config.position == "learned":
        named[_POSITIONS] = with_class_row(named[_POSITIONS], config.grid)
    return from_foreign(_rows(config, numbers), named, config, where)


def _config(found: ForeignTensors, attention: str, mlp: str, image_size: int) -> ViTConfig:
    rows, columns, channels, width = found.shape("embedding/kernel", 4)
    patch_size = found.patch_size("embedding/kernel", rows, columns, channels)
    learned = _POSITIONS in found.tensors
    return found.config(
        image_size=found.grid(_POSITIONS) * patch_size if learned else image_size,
        patch_size=patch_size,
        width=width,
        depth=found.depth(r"Transformer/encoderblock_(\d+)/"),
        mlp_width=found.shape(f"{mlp}/Dense_0/kernel", 2)[1],
        heads=found.shape(f"{attention}/query/kernel", 3)[1],
        num_classes=found.shape("head/kernel", 2)[1] if "head/kernel" in found.tensors else 0,
        pool="cls" if "cls" in found.tensors else "gap",
        position="learned" if learned else "sincos2d",
        pre_logits=found.shape("pre_logits/kernel", 2)[1] if "pre_logits/kernel" in found.tensors else 0,
        gelu="tanh",
    )


def _rows(config: ViTConfig, numbers: _Numbers) -> list[TensorMapping]:
    rows = [
        _patches(config),
        same("patches.projection.bias", "embedding/bias"),
        *_norm("norm", "Transformer/encoder_norm"),
    ]
    rows += [same("cls", "cls")] if config.pool == "cls" else []
    rows += [same("positions", _POSITIONS)] if config.position == "learned" else []
    for index in range(config.depth):
        rows += _block_rows(config, f"blocks.{index}", _BLOCK.format(index), numbers)
    rows += _dense("pre_logits", "pre_logits") if config.pre_logits else []
    rows += _dense("head", "head") if config.num_classes else []
    return rows


def _patches(config: ViTConfig) -> TensorMapping:
    p = config.patch_size
    return permuted(
        "patches.projection.weight",
        "embedding/kernel",
        lambda tensor: tensor.reshape(-1, CHANNELS, p, p).permute(2, 3, 1, 0),
        lambda tensor: tensor.permute(3, 2, 0, 1).flatten(1),
    )


def _block_rows(config: ViTConfig, ours: str, theirs: str, numbers: _Numbers) -> list[TensorMapping]:
    attention, mlp = f"{theirs}/{numbers.attention}", f"{theirs}/{numbers.mlp}"
    return [
        *_norm(f"{ours}.norm1", f"{theirs}/{numbers.norm1}"),
        *_norm(f"{ours}.norm2", f"{theirs}/{numbers.norm2}"),
        *_attention(config, f"{ours}.attention", attention),
        *_dense(f"{ours}.mlp.up", f"{mlp}/Dense_0"),
        *_dense(f"{ours}.mlp.down", f"{mlp}/Dense_1"),
    ]


def _attention(config: ViTConfig, ours: str, theirs: str) -> list[TensorMapping]:
    width, heads = config.width, config.heads
    names = [f"{theirs}/{part}" for part in ("query", "key", "value")]
    split_in, split_out = (width, heads, width // heads), (heads, width // heads, width)

    def split_kernels(tensor: Tensor) -> list[Tensor]:
        return [kernel.T.reshape(split_in) for kernel in tensor.chunk(3)]

    def join_kernels(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([kernel.reshape(width, width).T for kernel in tensors])

    def split_biases(tensor: Tensor) -> list[Tensor]:
        return [bias.reshape(heads, -1) for bias in tensor.chunk(3)]

    def join_biases(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([bias.flatten() for bias in tensors])

    return [
        TensorMapping(f"{ours}.qkv.weight", tuple(f"{name}/kernel" for name in names), split_kernels, join_kernels),
        TensorMapping(f"{ours}.qkv.bias", tuple(f"{name}/bias" for name in names), split_biases, join_biases),
        permuted(
            f"{ours}.out.weight",
            f"{theirs}/out/kernel",
            lambda tensor: tensor.T.reshape(split_out),
            lambda tensor: tensor.reshape(width, width).T,
        ),
        same(f"{ours}.out.bias", f"{theirs}/out/bias"),
    ]


def _dense(ours: str, theirs: str) -> list[TensorMapping]:
    kernel = permuted(f"{ours}.weight", f"{theirs}/kernel", lambda tensor: tensor.T, lambda tensor: tensor.T)
    return [kernel, same(f"{ours}.bias", f"{theirs}/bias")]


def _norm(ours: str, theirs: str) -> list[TensorMapping]:
    return [same(f"{ours}.weight", f"{theirs}/scale"), same(f"{ours}.bias", f"{theirs}/bias")]
