"""timm ``VisionTransformer``: state dicts, and the config.json that stands beside them on a hub.

timm's GELU is exact unless ``act_layer`` says otherwise, its epsilon 1e-6 as here. Its averaging models differ from
ours in one thing: they pool, then norm (``fc_norm``), unless built with ``fc_norm=False``. So ``fc_norm`` tensors are
refused, and a pooled network is written for ``class_token=False, global_pool="avg", fc_norm=False``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig
from pipeline.models.convert.foreign_file import ForeignTensors, with_class_row
from pipeline.models.convert.tensor_map import (
    ConvertedWeights,
    TensorMapping,
    Tensors,
    from_foreign,
    full_state,
    layer_mappings,
    patches_mapping,
    same_layout,
    to_foreign,
)
from pipeline.models.vit import ViT

_ACTIVATIONS: dict[str, Literal["tanh", "exact"]] = {"gelu": "exact", "gelu_tanh": "tanh"}
_BASE = "vit_base_patch16_224"  # what the written config.json starts from; model_args say the rest


def export_timm(model: ViT) -> dict[str, Tensor]:
    """The state dict. Raises InputError for what timm's class does not compute. Fixed positions become a weight."""
    config = model.config
    if config.pre_logits or config.norm_epsilon != 1e-6:
        feature = "a pre-logits layer" if config.pre_logits else f"epsilon {config.norm_epsilon:g}"
        raise InputError(f"timm's ViT has no place for {feature}", "export it as npz" if config.pre_logits else "")
    return to_foreign(_mappings(config), full_state(model))


def timm_config(config: ViTConfig, pretrained: dict[str, Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    """The config.json for ``timm.create_model("local-dir:FOLDER", pretrained=True)``; *pretrained*: its input."""
    activation = next(name for name, gelu in _ACTIVATIONS.items() if gelu == config.gelu)
    pool = "token" if config.pool == "cls" else "avg"
    tree: dict[str, Any] = {
        "architecture": _BASE,
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": pool,
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": _ratio(config),
            "class_token": config.pool == "cls",
            "global_pool": pool,
            "fc_norm": False,
            "act_layer": activation,
            "drop_path_rate": 0.0,
        },
        "pretrained_cfg": {
            "input_size": [3, config.image_size, config.image_size],
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **pretrained,
        },
    }
    return tree | ({"label_names": list(class_names)} if class_names else {})


def _ratio(config: ViTConfig) -> float:
    """Of widths; timm multiplies and cuts off the fraction, so never the float below the quotient."""
    ratio = config.mlp_width / config.width
    return ratio if int(config.width * ratio) == config.mlp_width else math.nextafter(ratio, math.inf)


def import_timm(
    tensors: Tensors,
    tree: Mapping[str, Any],
    source_name: str,
    heads: int | None = None,
    gelu: Literal["tanh", "exact"] | None = None,
) -> ConvertedWeights:
    """The weights of a state dict; *tree*: its config.json, empty where there is none.

    *heads*, *gelu*: what neither says. Raises InputError, naming tensors, for what is no plain ViT.
    """
    model_args = tree.get("model_args")
    settings = model_args if isinstance(model_args, dict) else {}
    if "cls_token" in tensors and (settings.get("global_pool") or tree.get("global_pool")) in ("avg", "avgmax", "max"):
        raise InputError(f"{source_name}: it pools all tokens beside a class token", "only one or the other is read")
    activation = str(settings.get("act_layer") or "gelu")
    if activation not in _ACTIVATIONS:
        raise InputError(f"{source_name}: act_layer {activation!r} is not read", f"known: {', '.join(_ACTIVATIONS)}")
    foreign = ForeignTensors(tensors, source_name)
    config = _config(foreign, heads or settings.get("num_heads"), gelu or _ACTIVATIONS[activation])
    named = dict(tensors)
    if config.pool == "cls":
        named["pos_embed"] = with_class_row(named["pos_embed"], config.grid)
    return from_foreign(_mappings(config), named, config, source_name)


def _config(foreign: ForeignTensors, heads: int | None, gelu: str) -> ViTConfig:
    width, channels, rows, columns = foreign.shape("patch_embed.proj.weight", 4)
    patch_size = foreign.patch_size("patch_embed.proj.weight", rows, columns, channels)
    depth, mlp_width = foreign.depth(r"blocks\.(\d+)\."), foreign.shape("blocks.0.mlp.fc1.weight", 2)[0]
    return foreign.config(
        image_size=foreign.grid("pos_embed") * patch_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        mlp_width=mlp_width,
        heads=foreign.heads(width, depth, mlp_width, heads),
        num_classes=foreign.shape("head.weight", 2)[0] if "head.weight" in foreign.tensors else 0,
        pool="cls" if "cls_token" in foreign.tensors else "gap",
        gelu=gelu,
    )


def _mappings(config: ViTConfig) -> list[TensorMapping]:
    mappings = [
        patches_mapping(config, "patch_embed.proj.weight"),
        same_layout("patches.projection.bias", "patch_embed.proj.bias"),
    ]
    mappings += [same_layout("cls", "cls_token")] if config.pool == "cls" else []
    mappings += [same_layout("positions", "pos_embed"), *layer_mappings("norm", "norm")]
    for index in range(config.depth):
        mappings += _block_mappings(f"blocks.{index}")
    return mappings + (layer_mappings("head", "head") if config.num_classes else [])


def _block_mappings(block: str) -> list[TensorMapping]:
    """The tensors of a block; both sides have the same name for it."""
    return [
        *layer_mappings(f"{block}.norm1", f"{block}.norm1"),
        *layer_mappings(f"{block}.norm2", f"{block}.norm2"),
        *layer_mappings(f"{block}.attention.qkv", f"{block}.attn.qkv"),
        *layer_mappings(f"{block}.attention.out", f"{block}.attn.proj"),
        *layer_mappings(f"{block}.mlp.up", f"{block}.mlp.fc1"),
        *layer_mappings(f"{block}.mlp.down", f"{block}.mlp.fc2"),
    ]
