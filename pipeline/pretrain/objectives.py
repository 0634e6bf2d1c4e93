"""Losses. Each takes the network, its input (B, 3, S, S) and the labels, and gives the mean loss in float32."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from pipeline.train.loop import Objective


def softmax(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over classes; labels int64 (B,)."""
    return F.cross_entropy(module(images).float(), labels)


OBJECTIVES: dict[str, Objective] = {"softmax": softmax}
