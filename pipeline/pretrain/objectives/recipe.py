"""What is trained, by name, ``objective: softmax``, or with settings, ``{name: softmax, label_smoothing: 0.1}``."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from pipeline.base.config import Config
from pipeline.stream.labels import LabelMode


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
