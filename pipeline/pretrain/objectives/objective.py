"""What an objective is, and the one registry of all of them. README.md here shows how to add one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from pipeline.models.vit import ViT
from pipeline.pretrain.objectives.classification import SigmoidObjective, SoftmaxObjective
from pipeline.pretrain.objectives.masked_patches import MaskedPatches
from pipeline.pretrain.objectives.recipe import MaskedPatchesRecipe, ObjectiveSettings, SigmoidRecipe, SoftmaxRecipe


class Objective(Protocol):
    """What is trained, and the loss. B images of S pixels, K classes."""

    def network(self, vit: ViT) -> nn.Module:
        """What the engine trains: *vit* itself, or a module with parameters of its own that holds it as ``vit``.

        Equal weights on every rank. Raises RecipeError when *vit* does not fit.
        """

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Mean over *images* (B, 3, S, S), float32 (). *module* is the engine's, which wraps ``network``.

        *labels*: int64 (B,), or float32 (B, K) for any number of classes each.
        """

    def vit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of *weights*, all of ``network`` by name, that are the ViT's, by its own names."""


OBJECTIVES: dict[type[ObjectiveSettings], Callable[[Any], Objective]] = {
    SoftmaxRecipe: lambda recipe: SoftmaxObjective(recipe.label_smoothing),
    SigmoidRecipe: lambda _: SigmoidObjective(),
    MaskedPatchesRecipe: lambda recipe: MaskedPatches(recipe.corrupted),
}


def build_objective(recipe: ObjectiveSettings) -> Objective:
    """The objective that *recipe* names. Raises KeyError for a recipe that has no row in OBJECTIVES."""
    return OBJECTIVES[type(recipe)](recipe)
