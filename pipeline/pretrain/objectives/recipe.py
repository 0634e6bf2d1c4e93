"""What is trained, by name, ``objective: softmax``, or with settings, ``{name: softmax, label_smoothing: 0.1}``."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from pipeline.base.config import Config
from pipeline.models.config import ViTConfig
from pipeline.models.cost import training_flops_per_image
from pipeline.stream.recipe import LabelMode


def num_corrupted(num_patches: int, share: float) -> int:
    """M: how many of *num_patches* are corrupted, at least one."""
    return max(1, round(num_patches * share))


_LEVELS = 8  # 3 bits for each of three channels
NUM_COLOURS = _LEVELS**3


class SoftmaxRecipe(Config):
    """Cross-entropy over classes, one of which is right."""

    labels: ClassVar[LabelMode] = "one"
    name: Literal["softmax"] = "softmax"
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that all classes get alike")


class SigmoidRecipe(Config):
    """A yes or no for each class (ViT on ImageNet-21k and JFT). Start it with model.head_bias -10; -6.9 for 1k."""

    labels: ClassVar[LabelMode] = "many"
    name: Literal["sigmoid"] = "sigmoid"


class MaskedPatchesRecipe(Config):
    """Masked patch prediction (ViT B.1.2). Needs no labels, and trains no head."""

    labels: ClassVar[LabelMode] = "none"
    name: Literal["masked_patches"] = "masked_patches"
    corrupted: float = Field(0.5, gt=0, le=1, description="share of the patches that are corrupted and predicted")


_RECIPES = (SoftmaxRecipe, SigmoidRecipe, MaskedPatchesRecipe)
OBJECTIVE_NAMES: tuple[str, ...] = tuple(kind.model_fields["name"].default for kind in _RECIPES)


def _with_name(value: Any) -> Any:
    """A name alone as a mapping. Raises ValueError naming the nearest objective."""
    tree = {"name": value} if isinstance(value, str) else value
    name = tree.get("name") if isinstance(tree, dict) else getattr(tree, "name", None)
    if name not in OBJECTIVE_NAMES:
        near = difflib.get_close_matches(str(name), OBJECTIVE_NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(OBJECTIVE_NAMES)}"
        raise ValueError(f"no objective of that name; {hint}" if name else f"name an objective; {hint}")
    return tree


ObjectiveRecipe = Annotated[
    SoftmaxRecipe | SigmoidRecipe | MaskedPatchesRecipe, Field(discriminator="name"), BeforeValidator(_with_name)
]


def reads_all_tokens(objective: ObjectiveRecipe) -> bool:
    """Whether the last block computes every token, though the network has a class token."""
    return isinstance(objective, MaskedPatchesRecipe)


def extra_flops_per_image(objective: ObjectiveRecipe, config: ViTConfig) -> int:
    """Forward, of what is no part of the network: the decoder of masked patches."""
    if not isinstance(objective, MaskedPatchesRecipe):
        return 0
    return 2 * num_corrupted(config.grid**2, objective.corrupted) * config.width * NUM_COLOURS


def pretraining_flops_per_image(objective: ObjectiveRecipe, config: ViTConfig) -> int:
    """Forward and backward, all together; what is computed again (activation checkpointing) is not among them."""
    network = training_flops_per_image(config, all_rows=reads_all_tokens(objective))
    return network + 3 * extra_flops_per_image(objective, config)
