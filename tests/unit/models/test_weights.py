"""model.safetensors: the way there and back, equal bytes for equal weights, and a typed refusal of anything else."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.models.weights import FORMAT, ModelDescription, pack_weights, unpack_description, unpack_model

CONFIG = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, mlp_width=32, heads=2, num_classes=3)
DESCRIPTION = ModelDescription(CONFIG, {"size": 8, "resize": 8, "mode": "square"}, ("cat", "chien", "猫"))


def packed(seed: int = 0, description: ModelDescription = DESCRIPTION) -> bytes:
    """A network's file."""
    model = ViT(description.architecture, seed=seed)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    return pack_weights(model.state_dict(), description)


def test_the_way_there_and_back_keeps_weights_description_and_function() -> None:
    model = ViT(CONFIG, seed=4).eval()
    torch.nn.init.normal_(model.head.weight)
    again, description = unpack_model(pack_weights(model.state_dict(), DESCRIPTION), "here")
    assert description == DESCRIPTION
    assert unpack_description(packed(), "here") == DESCRIPTION
    assert not again.training
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = torch.rand(5, 3, 8, 8)
    assert torch.equal(model(images), again(images))


def test_equal_weights_have_equal_bytes_here() -> None:
    assert len({sha256_hex(packed()) for _ in range(32)}) == 1
    model = ViT(CONFIG, seed=0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    backwards = dict(reversed(model.state_dict().items()))
    assert pack_weights(backwards, DESCRIPTION) == packed()


def test_equal_weights_have_equal_bytes_in_another_process() -> None:
    code = f"import runpy; this = runpy.run_path({__file__!r}); print(this['sha256_hex'](this['packed']()))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == sha256_hex(packed())


def test_other_weights_or_description_have_other_bytes() -> None:
    renamed = ModelDescription(CONFIG, DESCRIPTION.transform, ("a", "b", "c"))
    assert len({packed(0), packed(1), packed(0, renamed)}) == 3


def test_weights_of_another_dtype_are_stored_in_float32() -> None:
    model = ViT(CONFIG, seed=4).to(torch.bfloat16)
    again, _ = unpack_model(pack_weights(model.state_dict(), DESCRIPTION), "here")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again.blocks[0].mlp.up.weight, model.blocks[0].mlp.up.weight.float())


def pickled(_: bytes) -> bytes:
    """What torch.save makes."""
    sink = io.BytesIO()
    torch.save(ViT(CONFIG).state_dict(), sink)
    return sink.getvalue()


def other_shape(_: bytes) -> bytes:
    """The description of one network with the weights of another."""
    wide = CONFIG.model_copy(update={"width": 32})
    return pack_weights(ViT(wide).state_dict(), DESCRIPTION)


def without(name: str) -> bytes:
    """A file in which one tensor is not there."""
    tensors = {key: value for key, value in ViT(CONFIG).state_dict().items() if key != name}
    return pack_weights(tensors, DESCRIPTION)


def with_metadata(change: Callable[[dict[str, str]], None]) -> bytes:
    """A file of right weights, its metadata changed."""
    data = packed()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header["__metadata__"]
    change(metadata)
    return save(ViT(CONFIG).state_dict(), metadata=metadata)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut inside the header": lambda data: data[:100],
    "cut inside the tensors": lambda data: data[:-4],
    "longer than it says": lambda data: data + b"\0" * 4,
    "a header of another length": lambda data: (10**12).to_bytes(8, "little") + data[8:],
    "no header": lambda data: b"\0" * 200,
    "a header that is a list": lambda data: (2).to_bytes(8, "little") + b"[]",
    "pickle": lambda data: pickle.dumps({"weights": [1, 2, 3]}),
    "torch.save": pickled,
    "foreign safetensors": lambda data: save({"w": torch.zeros(3)}),
    "foreign metadata": lambda data: save({"w": torch.zeros(3)}, metadata={"format": "pt"}),
    "another format": lambda data: with_metadata(
        lambda metadata: metadata.update(description=metadata["description"].replace(FORMAT, "vitpipe-vit-99"))
    ),
    "an unknown field of the architecture": lambda data: with_metadata(
        lambda metadata: metadata.update(description=metadata["description"].replace('"heads"', '"haeds"'))
    ),
    "other shapes": other_shape,
    "a tensor too few": lambda data: without("norm.weight"),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_anything_else_is_refused_by_name(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DamageError, match=r"runs/x/model\.safetensors") as caught:
        unpack_model(damage(packed()), "runs/x/model.safetensors")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_from_before_a_field_was_there_is_read() -> None:
    def without_newer(metadata: dict[str, str]) -> None:
        tree = json.loads(metadata["description"])
        assert tree["architecture"].pop("drop_path") == 0.0
        assert tree["architecture"].pop("norm_epsilon") == 1e-6
        metadata["description"] = json.dumps(tree)

    assert unpack_model(with_metadata(without_newer), "here")[0].config == CONFIG
