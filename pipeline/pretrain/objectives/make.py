"""The objective of a recipe."""

from __future__ import annotations

from typing import assert_never

from pipeline.pretrain.objectives.classification import Sigmoid, Softmax
from pipeline.pretrain.objectives.masked_patches import MaskedPatches
from pipeline.pretrain.objectives.objective import Objective
from pipeline.pretrain.objectives.recipe import MaskedPatchesRecipe, ObjectiveRecipe, SigmoidRecipe, SoftmaxRecipe


def make_objective(recipe: ObjectiveRecipe) -> Objective:
    """What *recipe* names."""
    if isinstance(recipe, SoftmaxRecipe):
        return Softmax(recipe.label_smoothing)
    if isinstance(recipe, SigmoidRecipe):
        return Sigmoid()
    if isinstance(recipe, MaskedPatchesRecipe):
        return MaskedPatches(recipe.corrupted)
    assert_never(recipe)
