"""What is trained, by name, ``objective: softmax``, or with settings, ``{name: softmax, label_smoothing: 0.1}``.

A recipe also knows what its objective costs beside the network. One multiply-add counts as 2 FLOPs, as in
models/cost.py. No torch here, since recipes are read without it.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field

from pipeline.base.config import Config
from pipeline.models.config import ViTConfig
from pipeline.models.cost import training_flops_per_image
from pipeline.stream.recipe import LabelMode

COLOUR_LEVELS = 8  # of each channel: ViT predicts 3 bits (B.1.2)
NUM_COLOURS = COLOUR_LEVELS**3


class ObjectiveSettings(Config):
    """Base of the recipes of objectives. Each has a ``name``, and says which labels of a sample it reads."""

    labels: ClassVar[LabelMode]
    reads_all_tokens: ClassVar[bool] = False  # whether the last block computes every token, beside a class token

    def extra_flops_per_image(self, config: ViTConfig) -> int:
        """Forward, of what is no part of the network."""
        return 0


class SoftmaxRecipe(ObjectiveSettings):
    """Cross-entropy over classes, one of which is right."""

    labels: ClassVar[LabelMode] = "one"
    name: Literal["softmax"] = "softmax"
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that all classes get alike")


class SigmoidRecipe(ObjectiveSettings):
    """A yes or no for each class (ViT on ImageNet-21k and JFT). Start it with model.head_bias -10; -6.9 for 1k."""

    labels: ClassVar[LabelMode] = "many"
    name: Literal["sigmoid"] = "sigmoid"


class MaskedPatchesRecipe(ObjectiveSettings):
    """Masked patch prediction (ViT B.1.2). Needs no labels, and trains no head."""

    labels: ClassVar[LabelMode] = "none"
    reads_all_tokens: ClassVar[bool] = True
    name: Literal["masked_patches"] = "masked_patches"
    corrupted: float = Field(0.5, gt=0, le=1, description="share of the patches that are corrupted and predicted")

    def extra_flops_per_image(self, config: ViTConfig) -> int:
        """Of the decoder of the corrupted patches."""
        return 2 * num_corrupted(config.grid**2, self.corrupted) * config.width * NUM_COLOURS


def num_corrupted(num_patches: int, share: float) -> int:
    """M: how many of *num_patches* are corrupted, at least one."""
    return max(1, round(num_patches * share))


# One row for each objective; what it builds has its row in objective.py.
_Recipes = SoftmaxRecipe | SigmoidRecipe | MaskedPatchesRecipe
OBJECTIVE_RECIPES: tuple[type[ObjectiveSettings], ...] = get_args(_Recipes)


def _with_name(value: Any) -> Any:
    """A name alone as a mapping. Raises ValueError naming the nearest objective."""
    tree = {"name": value} if isinstance(value, str) else value
    name = tree.get("name") if isinstance(tree, dict) else getattr(tree, "name", None)
    names = [recipe.model_fields["name"].default for recipe in OBJECTIVE_RECIPES]
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"no objective of that name; {hint}" if name else f"name an objective; {hint}")
    return tree


ObjectiveRecipe = Annotated[_Recipes, Field(discriminator="name"), BeforeValidator(_with_name)]


def pretraining_flops_per_image(objective: ObjectiveSettings, config: ViTConfig) -> int:
    """Forward and backward, all together; what is computed again (activation checkpointing) is not among them."""
    network = training_flops_per_image(config, all_rows=objective.reads_all_tokens)
    return network + 3 * objective.extra_flops_per_image(config)
