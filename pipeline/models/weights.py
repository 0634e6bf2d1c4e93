"""``model.safetensors``: float32 weights with the architecture, transform and class names as metadata. No pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pipeline.base.errors import DamageError
from pipeline.models.registry import ModelConfig, Network, build_network, pack_architecture, unpack_architecture

FORMAT = "vitpipe-vit-1"
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header


@dataclass(frozen=True)
class ModelDescription:
    """What evaluation needs beside the tensors. ``transform`` is the evaluation transform's recipe."""

    architecture: ModelConfig
    transform: dict[str, Any]
    class_names: tuple[str, ...]


def pack_weights(tensors: dict[str, Tensor], description: ModelDescription) -> bytes:
    """The file's bytes. Equal weights and description give equal bytes.

    All metadata has one name: safetensors writes several names in an order that changes from call to call.
    """
    tree = {
        "format": FORMAT,
        "architecture": pack_architecture(description.architecture),
        "transform": description.transform,
        "class_names": list(description.class_names),
    }
    metadata = {"description": json.dumps(tree, sort_keys=True)}
    ordered = {name: tensors[name].to(torch.float32).contiguous() for name in sorted(tensors)}
    return bytes(save_tensors(ordered, metadata=metadata))


def unpack_description(data: bytes, source_name: str) -> ModelDescription:
    """The metadata of the file *data*, of which only the header is needed. Raises DamageError, naming *source_name*."""
    try:
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        metadata = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])["__metadata__"]
        tree = json.loads(metadata["description"])
        if tree["format"] != FORMAT:
            raise ValueError(tree["format"])
        architecture = unpack_architecture(tree["architecture"])
        return ModelDescription(architecture, tree["transform"], tuple(tree["class_names"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{source_name} does not describe a ViT of this program ({type(error).__name__})") from None


def unpack_model(data: bytes, source_name: str) -> tuple[Network, ModelDescription]:
    """The network and its description. Raises DamageError, naming *source_name*, when anything does not fit."""
    description = unpack_description(data, source_name)
    try:
        tensors = load_tensors(data)
        model = build_network(description.architecture)
        model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DamageError(f"{source_name}: weights do not fit the architecture: {str(error).splitlines()[0]}") from None
    return model.eval(), description
