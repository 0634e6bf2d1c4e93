"""What an objective is."""

from __future__ import annotations

from typing import Protocol, assert_never

from torch import Tensor, nn

from pipeline.models.vit import ViT
from pipeline.pretrain.objectives.classification import SigmoidObjective, SoftmaxObjective
from pipeline.pretrain.objectives.masked_patches import MaskedPatches
from pipeline.pretrain.objectives.recipe import MaskedPatchesRecipe, ObjectiveRecipe, SigmoidRecipe, SoftmaxRecipe


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

    def vit_weights(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of *whole*, the weights of ``network`` by name, that are the ViT's, by its own names."""


def build_objective(recipe: ObjectiveRecipe) -> Objective:
    """What *recipe* names."""
    if isinstance(recipe, SoftmaxRecipe):
        return SoftmaxObjective(recipe.label_smoothing)
    if isinstance(recipe, SigmoidRecipe):
        return SigmoidObjective()
    if isinstance(recipe, MaskedPatchesRecipe):
        return MaskedPatches(recipe.corrupted)
    assert_never(recipe)
