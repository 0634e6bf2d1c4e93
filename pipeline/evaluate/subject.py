"""What is judged: the weights of a checkpoint, imported weights, or raw pixels, which stand in for features as a
baseline.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, Stores, open_store
from pipeline.images.transform import EvaluationTransform
from pipeline.models.vit import ViT
from pipeline.models.weights import unpack_description, unpack_model
from pipeline.records.score import PIXELS

_WARM = 2  # networks that a process keeps
_SHOWN = 12  # digits of a digest


@dataclass(frozen=True)
class Subject:
    """Weights by digest and key in the workspace; for raw pixels the digest is PIXELS and the key empty.

    ``step`` is None for those, and for imported weights, which belong to no run.
    """

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
        if self.is_pixels:
            return "pixels"
        return f"weights {self.weights_digest[:_SHOWN]}" if self.step is None else f"step {self.step}"


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


def imported_subject(workspace: Store, uri: str, stores: Stores | None = None) -> Subject:
    """The weights of the ``model.safetensors`` at *uri*, which describe themselves and belong to no run.

    They are copied to ``imported/<digest>/`` in the workspace: every worker reads them there, and results stay
    reproducible from what is stored beside them. Raises InputError when there is nothing at *uri*, DamageError when it
    is no such file.
    """
    folder, _, name = uri.rpartition("/")
    try:
        data = open_store(folder or ".", stores).read(name)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{uri} is not there", "name a model.safetensors, as pretraining writes it") from None
    description = unpack_description(data, uri)
    digest = sha256_hex(data)
    key = f"imported/{digest}/model.safetensors"
    workspace.put_if_absent(key, data)
    return Subject(digest, key, description.transform, None)
