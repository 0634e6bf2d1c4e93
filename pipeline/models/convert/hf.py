"""``transformers``: ViTForImageClassification, and ViTModel, whose pooler (dense + tanh) is our pre-logits layer.

Written are the names that files on the hub have and every version reads. ``transformers`` 5 calls the modules
otherwise (``layers.0.attention.q_proj``); such state dicts are read as well. Its ``layer_norm_eps`` is 1e-12 and its
GELU exact where a config.json does not say otherwise; both are fields of ours. Two differences do not matter for a
forward pass at the trained resolution: it has no dropout between the MLP's dense layers, and resamples positions
bicubically.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig
from pipeline.models.convert.foreign_file import ForeignTensors
from pipeline.models.convert.tensor_map import (
    CHANNELS,
    ConvertedWeights,
    TensorMapping,
    Tensors,
    from_foreign,
    full_state,
    layer_mappings,
    patches_mapping,
    qkv_mapping,
    same_layout,
    to_foreign,
)
from pipeline.models.vit import ViT

_PREFIX = "vit."  # of everything but the classifier, in ViTForImageClassification
_ACTIVATIONS: dict[str, Literal["tanh", "exact"]] = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
}
# what a config.json that leaves it out means (transformers, configuration_vit.py)
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": CHANNELS,
    "qkv_bias": True,
    "pooler_act": "tanh",
}
_RENAMED = {  # transformers 5 -> the hub's files
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


def export_hf(model: ViT) -> dict[str, Tensor]:
    """The state dict: of ViTForImageClassification, or of ViTModel where there is no head.

    Raises InputError for what ``transformers`` does not compute. Fixed positions become a weight.
    """
    config = model.config
    if config.pool != "cls":
        raise InputError("transformers' ViT has no average pooling", "export it as timm or npz")
    if config.pre_logits and config.num_classes:
        raise InputError("transformers' ViT has no pre-logits layer below a head", "export it as npz")
    return to_foreign(_mappings(config, _PREFIX if config.num_classes else ""), full_state(model))


def hf_config(config: ViTConfig, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The config.json of an exported network."""
    tree: dict[str, Any] = {
        "architectures": ["ViTForImageClassification" if config.num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": config.position_std,
        "layer_norm_eps": config.norm_epsilon,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": CHANNELS,
        "qkv_bias": True,
        "encoder_stride": config.patch_size,
        "pooler_act": "tanh",
    }
    if config.pre_logits:
        tree["pooler_output_size"] = config.pre_logits
    if config.num_classes:
        names = class_names or tuple(f"LABEL_{number}" for number in range(config.num_classes))
        tree["id2label"] = {str(number): name for number, name in enumerate(names)}
        tree["label2id"] = {name: number for number, name in enumerate(names)}
    return tree


def import_hf(tensors: Tensors, tree: Mapping[str, Any], source_name: str) -> ConvertedWeights:
    """The weights of a state dict in either naming; *tree*: its config.json, which alone has heads, epsilon and GELU.

    Raises InputError, naming tensors or settings, for what is no plain ViT.
    """
    named = {_old_name(name): tensor for name, tensor in tensors.items()}
    classified = any(name.startswith(_PREFIX) for name in named)
    if classified:  # ViTForImageClassification has no use for a pooler that came along
        named = {name: tensor for name, tensor in named.items() if not name.startswith(f"{_PREFIX}pooler.")}
    prefix = _PREFIX if classified else ""
    config = _config(ForeignTensors(named, source_name), tree, prefix)
    return from_foreign(_mappings(config, prefix), named, config, source_name)


def hf_class_names(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of a config.json; none where it only numbers them."""
    labels = tree.get("id2label")
    if not isinstance(labels, dict) or not all(str(number).isdigit() for number in labels):
        return ()
    names = tuple(str(labels[number]) for number in sorted(labels, key=int))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _old_name(name: str) -> str:
    name = re.sub(r"^(vit\.)?layers\.(\d+)\.", r"\g<1>encoder.layer.\2.", name)
    for new, old in _RENAMED.items():
        name = name.replace(new, old)
    return name


def _config(foreign: ForeignTensors, tree: Mapping[str, Any], prefix: str) -> ViTConfig:
    """Sizes from the tensors, compared with config.json; what no shape implies, from config.json alone."""
    settings = _DEFAULTS | {name: value for name, value in tree.items() if value is not None}
    sizes = _sizes(foreign, prefix)
    expected: dict[str, Any] = {"model_type": "vit", "qkv_bias": True, "pooler_act": "tanh"} | sizes
    stated = {name: settings.get(name) for name in expected}
    stated |= {name: _side(settings[name]) for name in ("image_size", "patch_size")}
    wrong = [f"{name} {stated[name]!r}, not {value!r}" for name, value in expected.items() if stated[name] != value]
    if str(settings["hidden_act"]) not in _ACTIVATIONS:
        wrong.append(f"hidden_act {settings['hidden_act']!r}, not one of {', '.join(_ACTIVATIONS)}")
    if wrong:
        raise InputError(f"{foreign.source_name}: its config.json has {'; '.join(wrong)}")
    names = foreign.tensors
    return foreign.config(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        mlp_width=sizes["intermediate_size"],
        heads=settings["num_attention_heads"],
        num_classes=foreign.shape("classifier.weight", 2)[0] if "classifier.weight" in names else 0,
        pre_logits=foreign.shape("pooler.dense.weight", 2)[0] if "pooler.dense.weight" in names else 0,
        dropout=settings["hidden_dropout_prob"],
        gelu=_ACTIVATIONS[str(settings["hidden_act"])],
        norm_epsilon=settings["layer_norm_eps"],
    )


def _sizes(foreign: ForeignTensors, prefix: str) -> dict[str, int]:
    """Sizes by their names in config.json."""
    projection = f"{prefix}embeddings.patch_embeddings.projection.weight"
    width, channels, rows, columns = foreign.shape(projection, 4)
    patch_size = foreign.patch_size(projection, rows, columns, channels)
    return {
        "hidden_size": width,
        "num_hidden_layers": foreign.depth(rf"{re.escape(prefix)}encoder\.layer\.(\d+)\."),
        "intermediate_size": foreign.shape(f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "image_size": foreign.grid(f"{prefix}embeddings.position_embeddings") * patch_size,
        "patch_size": patch_size,
        "num_channels": CHANNELS,
    }


def _side(value: Any) -> Any:
    """The side of a square that is written as one number or as two equal ones."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def _mappings(config: ViTConfig, prefix: str) -> list[TensorMapping]:
    embeddings = f"{prefix}embeddings"
    mappings = [
        patches_mapping(config, f"{embeddings}.patch_embeddings.projection.weight"),
        same_layout("patches.projection.bias", f"{embeddings}.patch_embeddings.projection.bias"),
        same_layout("cls", f"{embeddings}.cls_token"),
        same_layout("positions", f"{embeddings}.position_embeddings"),
        *layer_mappings("norm", f"{prefix}layernorm"),
    ]
    for index in range(config.depth):
        mappings += _block_mappings(f"blocks.{index}", f"{prefix}encoder.layer.{index}")
    mappings += layer_mappings("pre_logits", f"{prefix}pooler.dense") if config.pre_logits else []
    return mappings + (layer_mappings("head", "classifier") if config.num_classes else [])


def _block_mappings(own: str, foreign: str) -> list[TensorMapping]:
    attention = f"{foreign}.attention.attention"
    projections = [
        qkv_mapping(
            f"{own}.attention.qkv.{part}",
            (f"{attention}.query.{part}", f"{attention}.key.{part}", f"{attention}.value.{part}"),
        )
        for part in ("weight", "bias")
    ]
    return [
        *projections,
        *layer_mappings(f"{own}.norm1", f"{foreign}.layernorm_before"),
        *layer_mappings(f"{own}.norm2", f"{foreign}.layernorm_after"),
        *layer_mappings(f"{own}.attention.out", f"{foreign}.attention.output.dense"),
        *layer_mappings(f"{own}.mlp.up", f"{foreign}.intermediate.dense"),
        *layer_mappings(f"{own}.mlp.down", f"{foreign}.output.dense"),
    ]
