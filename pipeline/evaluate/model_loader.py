"""ModelRef -> network: weights are loaded with every byte checked, and the last networks stay in the process."""

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

_MAX_WARM = 2  # networks that a process keeps


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


def load_network(workspace: Store, model_ref: ModelRef) -> ViT | PixelNetwork:
    """The model's network, in evaluation mode. Raises DamageError when the weights are not those of the digest."""
    return _load(workspace, model_ref).network


def warm_network(workspace: Store, model_ref: ModelRef) -> ViT | PixelNetwork:
    """The same, shared and to be read only: the last ones stay in this process. On the GPU where there is one."""
    return _load_warm(workspace, model_ref).network


def warm_class_names(workspace: Store, model_ref: ModelRef) -> tuple[str, ...]:
    """The names of the classes of the same network; () where its weights do not name them."""
    return _load_warm(workspace, model_ref).class_names


@dataclass(frozen=True)
class _LoadedModel:
    """A network, and the names of its classes: () where its weights do not name them."""

    network: ViT | PixelNetwork
    class_names: tuple[str, ...] = ()


_warm: OrderedDict[tuple[str, str, str], _LoadedModel] = OrderedDict()  # least recently used first


def _load_warm(workspace: Store, model_ref: ModelRef) -> _LoadedModel:
    key = (workspace.uri, model_ref.weights_key, model_ref.weights_digest)
    loaded = _warm.pop(key, None)
    if loaded is None:
        loaded = _load(workspace, model_ref)
        loaded.network.requires_grad_(False).to(compute_device())
    _warm[key] = loaded
    while len(_warm) > _MAX_WARM:
        _warm.popitem(last=False)
    return loaded


def _load(workspace: Store, model_ref: ModelRef) -> _LoadedModel:
    if model_ref.is_pixels:
        return _LoadedModel(PixelNetwork())
    try:
        data = workspace.read(model_ref.weights_key)
    except FileNotFoundError:
        raise DamageError(f"{model_ref.weights_key} vanished") from None
    if sha256_hex(data) != model_ref.weights_digest:
        raise DamageError(f"{model_ref.weights_key}: its bytes are not those that the checkpoint's card names")
    model, description = unpack_model(data, model_ref.weights_key)
    return _LoadedModel(model, description.class_names)
