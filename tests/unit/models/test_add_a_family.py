"""A family is added as ``pipeline/models/README.md`` says: one module of its own, and its row in the registry."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.base.config import Config
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.models.config import ViTConfig
from pipeline.models.registry import FAMILIES, ModelFamily, build_network, pack_architecture, unpack_architecture
from pipeline.models.vit import ViT
from pipeline.models.weights import FORMAT, ModelDescription, pack_weights, unpack_description, unpack_model

VIT = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, mlp_width=32, heads=2, num_classes=3)
# Of the file that the code from before the registry wrote for VIT, its tensors filled with 0, 1, 2, ...
VIT_SHA256 = "52dd42958c639a6a0408db82e7fb804829f33a15a76526339a0c7a027c78c713"


class ToyConfig(Config):
    """A family's config."""

    family: ClassVar[str] = "toy"

    image_size: int = Field(8, gt=0)
    channels: int = Field(4, gt=0)
    num_classes: int = Field(0, ge=0)


class Toy(nn.Module):
    """A family's network: one convolution, averaged."""

    def __init__(self, config: ToyConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3, config.channels, 3)
        self.head = nn.Linear(config.channels, config.num_classes)
        if not self.stem.weight.is_meta:
            self.stem.weight.data.normal_(generator=torch.Generator().manual_seed(seed))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        out: Tensor = self.stem(images_BCHW).mean(dim=(2, 3))
        return out

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        out: Tensor = self.head(self.features(images_BCHW))
        return out


CONFIG: Any = ToyConfig(channels=5, num_classes=2)  # Any: the unions of the registry do not name the toy
DESCRIPTION = ModelDescription(CONFIG, {"size": 8}, ("a", "b"))


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of the registry."""
    family: Any = ModelFamily
    monkeypatch.setitem(FAMILIES, "toy", family(ToyConfig, Toy))


@pytest.mark.usefixtures("row")
def test_a_new_family_is_packed_and_unpacked() -> None:
    network: Any = build_network(CONFIG, seed=3)
    assert isinstance(network, Toy)
    data = pack_weights(network.state_dict(), DESCRIPTION)
    again, description = unpack_model(data, "here")
    assert isinstance(again, Toy)
    assert not again.training
    assert description == DESCRIPTION
    assert type(description.architecture) is ToyConfig
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(images), again(images))


@pytest.mark.usefixtures("row")
def test_a_new_family_is_built_without_weights_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in build_network(CONFIG).parameters())


def test_without_its_row_a_family_is_refused() -> None:
    data = pack_weights(Toy(CONFIG).state_dict(), DESCRIPTION)
    with pytest.raises(DamageError, match="here"):
        unpack_model(data, "here")
    with pytest.raises(KeyError):
        build_network(CONFIG)


@pytest.mark.usefixtures("row")
def test_fields_of_another_family_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size"):
        unpack_architecture(VIT.model_dump() | {"family": "toy"})


def test_a_stored_vit_names_no_family_and_keeps_its_bytes() -> None:
    shapes = {name: tensor.shape for name, tensor in ViT(VIT).state_dict().items()}
    tensors = {name: torch.arange(shape.numel(), dtype=torch.float32).reshape(shape) for name, shape in shapes.items()}
    assert sha256_hex(pack_weights(tensors, ModelDescription(VIT, {"size": 8}, ("a", "b", "c")))) == VIT_SHA256
    assert pack_architecture(VIT) == VIT.model_dump(mode="json")
    assert type(build_network(VIT)) is ViT


def test_a_file_without_a_family_is_a_vit() -> None:
    tree = {"format": FORMAT, "architecture": VIT.model_dump(mode="json"), "transform": {}, "class_names": []}
    assert "family" not in tree["architecture"]
    data = save({}, metadata={"description": json.dumps(tree)})
    assert unpack_description(data, "here").architecture == VIT
