"""What is judged: the weights of a checkpoint, or raw pixels, which stand in for features as a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.images.normalise import normalise
from pipeline.images.transform import EvaluationTransform
from pipeline.models.vit import ViT
from pipeline.models.weights import unpack_model
from pipeline.records.score import PIXELS


@dataclass(frozen=True)
class Subject:
    """Weights by digest and key in the workspace; for raw pixels the digest is PIXELS and the key empty."""

    weights_digest: str
    weights_key: str
    transform: dict[str, Any]
    step: int | None

    @property
    def is_pixels(self) -> bool:
        """True for the raw-pixel baseline."""
        return self.weights_digest == PIXELS

    @property
    def evaluation_transform(self) -> EvaluationTransform:
        """How its input is made."""
        return EvaluationTransform.model_validate(self.transform)

    @property
    def name(self) -> str:
        """For people."""
        return "pixels" if self.is_pixels else f"step {self.step}"


class PixelNetwork(nn.Module):
    """The network of the raw-pixel baseline: features are the flattened input, (B, 3, S, S) -> (B, 3*S*S)."""

    def __init__(self, num_classes: int = 0, size: int = 0) -> None:
        super().__init__()
        self.head = nn.Linear(3 * size * size, num_classes) if num_classes else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 3*S*S)."""
        return images_BCHW.flatten(1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)."""
        features = self.features(images_BCHW)
        return self.head(features) if self.head is not None else features


def load_network(workspace: Store, subject: Subject) -> ViT | PixelNetwork:
    """The subject's network, in evaluation mode. Raises DamageError when the weights are not those of the digest."""
    if subject.is_pixels:
        return PixelNetwork()
    try:
        data = workspace.read(subject.weights_key)
    except FileNotFoundError:
        raise DamageError(f"{subject.weights_key} vanished") from None
    if sha256_hex(data) != subject.weights_digest:
        raise DamageError(f"{subject.weights_key}: its bytes are not those that the checkpoint's card names")
    model, _ = unpack_model(data, subject.weights_key)
    return model


@torch.inference_mode()
def features_of(network: ViT | PixelNetwork, images: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 (B, D)."""
    return network.features(normalise(images, torch.float32))
