"""The official checkpoints (``.npz``): vision_transformer and AugReg, and big_vision.

Names of vision_transformer are those of its Flax modules (vit_jax/models_vit.py), in the numbering of the published
files; big_vision's (models/vit.py) number a block's modules by kind and keep the positions beside the Transformer, or,
before 2022, in it. Dense kernels are (in, out), q, k, v (D, H, E), the output of attention (H, E, D), patches
(P, P, C, D). The JAX code has GELU by tanh and norms with epsilon 1e-6, which a file does not say; so files
are read as these, and nothing else is written.
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
    full_state,
    permuted,
    same_layout,
    to_foreign,
)
from pipeline.models.vit import ViT

_BLOCK = "Transformer/encoderblock_{}"
_POSITIONS = "Transformer/posembed_input/pos_embedding"
_OTHER_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")  # big_vision: now, and before 2022
_PREFIX = "params/"  # of big_vision's training checkpoints


@dataclass(frozen=True)
class _ModuleNames:
    """What the modules of a block are called."""

    norm1: str
    attention: str
    norm2: str
    mlp: str


_OFFICIAL = _ModuleNames("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
_BIG_VISION = _ModuleNames("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


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
    tensors = to_foreign(_mappings(config, _OFFICIAL), full_state(model))
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


def import_npz(tensors: Tensors, source_name: str, image_size: int = 224) -> ConvertedWeights:
    """The weights of a file in any of the three namings. *image_size* is for fixed positions, which do not imply it.

    Raises InputError, naming tensors, for what is no plain ViT.
    """
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    for name in _OTHER_POSITIONS:
        if name in named:
            named[_POSITIONS] = named.pop(name)
    foreign = ForeignTensors(named, source_name)
    first = _BLOCK.format(0)
    module_names = _BIG_VISION if f"{first}/LayerNorm_1/scale" in named else _OFFICIAL
    config = _config(foreign, f"{first}/{module_names.attention}", f"{first}/{module_names.mlp}", image_size)
    if config.pool == "cls" and config.position == "learned":
        named[_POSITIONS] = with_class_row(named[_POSITIONS], config.grid)
    return from_foreign(_mappings(config, module_names), named, config, source_name)


def _config(foreign: ForeignTensors, attention: str, mlp: str, image_size: int) -> ViTConfig:
    rows, columns, channels, width = foreign.shape("embedding/kernel", 4)
    patch_size = foreign.patch_size("embedding/kernel", rows, columns, channels)
    learned = _POSITIONS in foreign.tensors
    return foreign.config(
        image_size=foreign.grid(_POSITIONS) * patch_size if learned else image_size,
        patch_size=patch_size,
        width=width,
        depth=foreign.depth(r"Transformer/encoderblock_(\d+)/"),
        mlp_width=foreign.shape(f"{mlp}/Dense_0/kernel", 2)[1],
        heads=foreign.shape(f"{attention}/query/kernel", 3)[1],
        num_classes=foreign.shape("head/kernel", 2)[1] if "head/kernel" in foreign.tensors else 0,
        pool="cls" if "cls" in foreign.tensors else "gap",
        position="learned" if learned else "sincos2d",
        pre_logits=foreign.shape("pre_logits/kernel", 2)[1] if "pre_logits/kernel" in foreign.tensors else 0,
        gelu="tanh",
    )


def _mappings(config: ViTConfig, module_names: _ModuleNames) -> list[TensorMapping]:
    mappings = [
        _patches(config),
        same_layout("patches.projection.bias", "embedding/bias"),
        *_norm("norm", "Transformer/encoder_norm"),
    ]
    mappings += [same_layout("cls", "cls")] if config.pool == "cls" else []
    mappings += [same_layout("positions", _POSITIONS)] if config.position == "learned" else []
    for index in range(config.depth):
        mappings += _block_mappings(config, f"blocks.{index}", _BLOCK.format(index), module_names)
    mappings += _dense("pre_logits", "pre_logits") if config.pre_logits else []
    mappings += _dense("head", "head") if config.num_classes else []
    return mappings


def _patches(config: ViTConfig) -> TensorMapping:
    p = config.patch_size
    return permuted(
        "patches.projection.weight",
        "embedding/kernel",
        lambda tensor: tensor.reshape(-1, CHANNELS, p, p).permute(2, 3, 1, 0),
        lambda tensor: tensor.permute(3, 2, 0, 1).flatten(1),
    )


def _block_mappings(config: ViTConfig, own: str, foreign: str, module_names: _ModuleNames) -> list[TensorMapping]:
    attention, mlp = f"{foreign}/{module_names.attention}", f"{foreign}/{module_names.mlp}"
    return [
        *_norm(f"{own}.norm1", f"{foreign}/{module_names.norm1}"),
        *_norm(f"{own}.norm2", f"{foreign}/{module_names.norm2}"),
        *_attention(config, f"{own}.attention", attention),
        *_dense(f"{own}.mlp.up", f"{mlp}/Dense_0"),
        *_dense(f"{own}.mlp.down", f"{mlp}/Dense_1"),
    ]


def _attention(config: ViTConfig, own: str, foreign: str) -> list[TensorMapping]:
    width, heads = config.width, config.heads
    names = [f"{foreign}/{part}" for part in ("query", "key", "value")]
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
        TensorMapping(f"{own}.qkv.weight", tuple(f"{name}/kernel" for name in names), split_kernels, join_kernels),
        TensorMapping(f"{own}.qkv.bias", tuple(f"{name}/bias" for name in names), split_biases, join_biases),
        permuted(
            f"{own}.out.weight",
            f"{foreign}/out/kernel",
            lambda tensor: tensor.T.reshape(split_out),
            lambda tensor: tensor.reshape(width, width).T,
        ),
        same_layout(f"{own}.out.bias", f"{foreign}/out/bias"),
    ]


def _dense(own: str, foreign: str) -> list[TensorMapping]:
    kernel = permuted(f"{own}.weight", f"{foreign}/kernel", lambda tensor: tensor.T, lambda tensor: tensor.T)
    return [kernel, same_layout(f"{own}.bias", f"{foreign}/bias")]


def _norm(own: str, foreign: str) -> list[TensorMapping]:
    return [same_layout(f"{own}.weight", f"{foreign}/scale"), same_layout(f"{own}.bias", f"{foreign}/bias")]
