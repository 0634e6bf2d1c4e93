"""The model families: which config and which network the name of a family stands for.

A family's name is the class attribute ``family`` of its config. It is stored beside the fields of the architecture,
except for ViT: architectures stored without a family are ViTs. ``README.md`` says how to add a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT

# With a second family these become unions; mypy then names every user of what only ViT has.
ModelConfig = ViTConfig
Network = ViT


@dataclass(frozen=True)
class ModelFamily:
    """One row: the config's class, and the network's, which is built from a config and a seed."""

    config: type[ModelConfig]
    network: type[Network]


FAMILIES: dict[str, ModelFamily] = {ViTConfig.family: ModelFamily(ViTConfig, ViT)}


def build_network(config: ModelConfig, seed: int = 0) -> Network:
    """The network of *config*, its weights drawn from *seed*; on the meta device none are drawn."""
    return FAMILIES[config.family].network(config, seed)


def pack_architecture(config: ModelConfig) -> dict[str, Any]:
    """*config* as it is stored: its fields, and the family of any other than ViT."""
    fields = config.model_dump(mode="json")
    return fields if config.family == ViTConfig.family else fields | {"family": config.family}


def unpack_architecture(tree: Any) -> ModelConfig:
    """The inverse of :func:`pack_architecture`. Raises KeyError for an unknown family, pydantic's error for fields."""
    if not isinstance(tree, dict) or "family" not in tree:
        return ViTConfig.model_validate(tree)
    fields = {name: value for name, value in tree.items() if name != "family"}
    return FAMILIES[tree["family"]].config.model_validate(fields)
