"""Objectives that read labels: softmax for one class of each image, a sigmoid for each of many."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.base.errors import RecipeError
from pipeline.models.vit import ViT


class _LogitsObjective:
    """Trains the ViT as it is, by its logits."""

    def network(self, vit: ViT) -> nn.Module:
        """The ViT itself."""
        if vit.head is None:
            raise RecipeError(["this objective needs a head: model.num_classes is 0"])
        return vit

    def vit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of them."""
        return weights


@dataclass(frozen=True)
class SoftmaxObjective(_LogitsObjective):
    """Cross-entropy; *label_smoothing* of the target is spread over all classes (arXiv 1512.00567)."""

    label_smoothing: float = 0.0

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """*labels*: int64 (B,), or float32 (B, K) of sum 1."""
        return F.cross_entropy(module(images).float(), labels, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class SigmoidObjective(_LogitsObjective):
    """Binary cross-entropy of each class, summed over classes (big_vision utils.py, ``sigmoid_xent``)."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """*labels*: float32 (B, K), from 0 to 1 each."""
        logits = module(images).float()
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / len(logits)
