"""The networks of subjects: loaded with every byte checked, and kept warm in a process."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.evaluate.subject import Subject
from pipeline.models.vit import ViT
from pipeline.models.weights import unpack_model

_WARM = 2  # networks that a process keeps


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


def warm_network(workspace: Store, subject: Subject) -> ViT | PixelNetwork:
    """The same, to be read only: the last ones stay in this process. On the GPU where there is one."""
    name = (workspace.uri, subject.weights_key, subject.weights_digest)
    network = _warm.pop(name, None)
    if network is None:
        network = load_network(workspace, subject).requires_grad_(False).to(compute_device())
    _warm[name] = network
    while len(_warm) > _WARM:
        _warm.popitem(last=False)
    return network


_warm: OrderedDict[tuple[str, str, str], ViT | PixelNetwork] = OrderedDict()


def compute_device() -> torch.device:
    """Where networks compute here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
