"""What an objective costs beside the network, and with it. One multiply-add counts as 2 FLOPs, as in models/cost.py."""

from __future__ import annotations

from pipeline.models.config import ViTConfig
from pipeline.models.cost import training_flops_per_image
from pipeline.pretrain.objectives.corruption import num_corrupted
from pipeline.pretrain.objectives.masked_patches import NUM_COLOURS
from pipeline.pretrain.objectives.recipe import MaskedPatchesRecipe, ObjectiveRecipe


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
