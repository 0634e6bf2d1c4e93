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
    layer,
    patches_row,
    same,
    to_foreign,
    whole_state,
)
from pipeline.models.vit import ViT

_ACTIVATIONS: dict[str, Literal["tanh", "exact"]] = {"gelu": "exact", "gelu_tanh": "tanh"}
_BASE = "vit_base_patch16_224"  # what the written config.json takes for a start; model_args say the rest


def export_timm(model: ViT) -> dict[str, Tensor]:
    """The state dict. Raises InputError for what timm's class does not compute. Fixed positions become a weight."""
    config = model.config
    if config.pre_logits or config.norm_epsilon != 1e-6:
        what = "a pre-logits layer" if config.pre_logits else f"epsilon {config.norm_epsilon:g}"
        raise InputError(f"timm's ViT has no place for {what}", "export it as npz" if config.pre_logits else "")
    return to_foreign(_rows(config), whole_state(model))


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
    where: str,
    heads: int | None = None,
    gelu: Literal["tanh", "exact"] | None = None,
) -> ConvertedWeights:
    """Of a state dict; *tree*: its config.json, empty where there is none. *heads*, *gelu*: what neither tells."""
    given = tree.get("model_args")
    told = given if isinstance(given, dict) else {}
    if "cls_token" in tensors and (told.get("global_pool") or tree.get("global_pool")) in ("avg", "avgmax", "max"):
        raise InputError(f"{where}: it pools all tokens beside a class token", "only one or the other is read")
    activation = str(told.get("act_layer") or "gelu")
    if activation not in _ACTIVATIONS:
        raise InputError(f"{where}: act_layer {activation!r} is not read", f"known: {', '.join(_ACTIVATIONS)}")
    found = ForeignTensors(tensors, where)
    config = _config(found, heads or told.get("num_heads"), gelu or _ACTIVATIONS[activation])
    named = dict(tensors)
    if config.pool == "cls":
        named["pos_embed"] = with_class_row(named["pos_embed"], config.grid)
    return from_foreign(_rows(config), named, config, where)


def _config(found: ForeignTensors, heads: int | None, gelu: str) -> ViTConfig:
    width, channels, rows, columns = found.shape("patch_embed.proj.weight", 4)
    patch_size = found.patch_size("patch_embed.proj.weight", rows, columns, channels)
    depth, mlp_width = found.depth(r"blocks\.(\d+)\."), found.shape("blocks.0.mlp.fc1.weight", 2)[0]
    return found.config(
        image_size=found.grid("pos_embed") * patch_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        mlp_width=mlp_width,
        heads=found.heads(width, depth, mlp_width, heads),
        num_classes=found.shape("head.weight", 2)[0] if "head.weight" in found.tensors else 0,
        pool="cls" if "cls_token" in found.tensors else "gap",
        gelu=gelu,
    )


def _rows(config: ViTConfig) -> list[TensorMapping]:
    rows = [patches_row(config, "patch_embed.proj.weight"), same("patches.projection.bias", "patch_embed.proj.bias")]
    rows += [same("cls", "cls_token")] if config.pool == "cls" else []
    rows += [same("positions", "pos_embed"), *layer("norm", "norm")]
    for index in range(config.depth):
        block = f"blocks.{index}"
        rows += layer(f"{block}.norm1", f"{block}.norm1") + layer(f"{block}.norm2", f"{block}.norm2")
        rows += layer(f"{block}.attention.qkv", f"{block}.attn.qkv") + layer(
            f"{block}.attention.out", f"{block}.attn.proj"
        )
        rows += layer(f"{block}.mlp.up", f"{block}.mlp.fc1") + layer(f"{block}.mlp.down", f"{block}.mlp.fc2")
    return rows + (layer("head", "head") if config.num_classes else [])
