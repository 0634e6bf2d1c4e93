"""The networks of subjects: loaded with every byte checked, and kept warm in a process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.model_ref import ModelRef
from pipeline.models.vit import ViT
from pipeline.models.weights import unpack_model
from pipeline.train.device import compute_device

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


@dataclass(frozen=True)
class LoadedModel:
    """A network, and the names of its classes: none where its weights do not tell them."""

    network: ViT | PixelNetwork
    class_names: tuple[str, ...] = ()


def load_network(workspace: Store, subject: ModelRef) -> ViT | PixelNetwork:
    """The subject's network, in evaluation mode. Raises DamageError when the weights are not those of the digest."""
    return _loaded(workspace, subject).network


def _loaded(workspace: Store, subject: ModelRef) -> LoadedModel:
    if subject.is_pixels:
        return LoadedModel(PixelNetwork())
    try:
        data = workspace.read(subject.weights_key)
    except FileNotFoundError:
        raise DamageError(f"{subject.weights_key} vanished") from None
    if sha256_hex(data) != subject.weights_digest:
        raise DamageError(f"{subject.weights_key}: its bytes are not those that the checkpoint's card names")
    model, description = unpack_model(data, subject.weights_key)
    return LoadedModel(model, description.class_names)


def warm_network(workspace: Store, subject: ModelRef) -> ViT | PixelNetwork:
    """The same, to be read only: the last ones stay in this process. On the GPU where there is one."""
    return _kept_warm(workspace, subject).network


def warm_class_names(workspace: Store, subject: ModelRef) -> tuple[str, ...]:
    """The names of its classes, of the same network; none where its weights do not tell them."""
    return _kept_warm(workspace, subject).class_names


def _kept_warm(workspace: Store, subject: ModelRef) -> LoadedModel:
    name = (workspace.uri, subject.weights_key, subject.weights_digest)
    loaded = _warm.pop(name, None)
    if loaded is None:
        loaded = _loaded(workspace, subject)
        loaded.network.requires_grad_(False).to(compute_device())
    _warm[name] = loaded
    while len(_warm) > _WARM:
        _warm.popitem(last=False)
    return loaded


_warm: OrderedDict[tuple[str, str, str], LoadedModel] = OrderedDict()
