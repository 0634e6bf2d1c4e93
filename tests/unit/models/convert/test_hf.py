"""Weights to and from transformers: the library itself loads what we write, we read what it writes, outputs agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig
from pipeline.models.convert.hf import export_hf, hf_class_names, hf_config, import_hf
from pipeline.models.vit import ViT
from tests.support.networks import images, randomised

CONFIG = ViTConfig(image_size=16, patch_size=4, width=24, depth=2, mlp_width=40, heads=3, num_classes=5)
NAMES = ("cat", "chien", "猫", "d", "e")


def network(**changes: object) -> ViT:
    """A ViT all of whose weights are drawn."""
    return randomised(ViTConfig.model_validate(CONFIG.model_dump() | changes))


def foreign(kind: str, **changes: Any) -> Any:
    """A transformers model whose weights are all drawn."""
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=4
    )
    for name, value in changes.items():
        setattr(config, name, value)
    model = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "layernorm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.2, generator=generator)
    return model


def ours(imported: Any) -> ViT:
    """The network of what was imported."""
    model = ViT(imported.config)
    model.load_state_dict(imported.state)
    return model.eval()


def saved(model: Any, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What transformers writes of *model*: tensors and config.json."""
    model.save_pretrained(folder)
    config = transformers.ViTConfig.from_pretrained(folder).to_dict()
    return load_file(folder / "model.safetensors"), config


@pytest.mark.parametrize(
    "change", [{}, {"gelu": "exact"}, {"norm_epsilon": 1e-2}, {"position": "sincos2d"}, {"position_std": 0.3}]
)
def test_transformers_computes_what_we_do(change: dict[str, object]) -> None:
    model = network(**change)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**hf_config(model.config, NAMES))).eval()
    new_names = {new_name(name): tensor for name, tensor in export_hf(model).items()}
    theirs.load_state_dict(new_names)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images()).logits, model(images()), rtol=1e-5, atol=1e-5)


def new_name(name: str) -> str:
    """The hub's name as version 5 of the library calls the module, written out on its own here."""
    if "encoder.layer." not in name:
        return name
    before, _, after = name.partition("encoder.layer.")
    index, _, rest = after.partition(".")
    table = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
    table |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
    table |= {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    module, _, part = rest.rpartition(".")
    return f"{before}layers.{index}.{table.get(module, module)}.{part}"


@pytest.mark.parametrize(("act", "eps"), [("gelu", 1e-12), ("gelu_pytorch_tanh", 1e-6), ("gelu_new", 1e-3)])
def test_we_compute_what_transformers_does(act: str, eps: float, tmp_path: Path) -> None:
    theirs = foreign("ViTForImageClassification", hidden_act=act, layer_norm_eps=eps, num_labels=7)
    tensors, tree = saved(theirs, tmp_path)
    for given in (tensors, dict(theirs.state_dict())):  # as in a file, and as the modules of this version are called
        imported = import_hf(given, tree, "here")
        assert imported.config.norm_epsilon == eps
        model = ours(imported)
        with torch.no_grad():
            torch.testing.assert_close(model(images()), theirs(images()).logits, rtol=1e-5, atol=1e-5)
            hidden = theirs(images(), output_hidden_states=True).hidden_states
            torch.testing.assert_close(model.intermediate(images(), [1])[1], hidden[1], rtol=1e-5, atol=1e-5)


def test_the_pooler_is_the_pre_logits_layer(tmp_path: Path) -> None:
    theirs = foreign("ViTModel", pooler_output_size=11)
    tensors, tree = saved(theirs, tmp_path)
    model = ours(import_hf(tensors, tree, "here"))
    assert (model.config.pre_logits, model.config.num_classes) == (11, 0)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), theirs(images()).pooler_output, rtol=1e-5, atol=1e-5)
    again = transformers.ViTModel(transformers.ViTConfig(**hf_config(model.config, ()))).eval()
    again.load_state_dict({new_name(name): tensor for name, tensor in export_hf(model).items()})
    with torch.no_grad():
        torch.testing.assert_close(again(images()).pooler_output, model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"num_classes": 0}, {"num_classes": 0, "pre_logits": 9}, {"dropout": 0.1}])
def test_out_and_in_again_is_bit_by_bit_the_same(change: dict[str, object]) -> None:
    model = network(**change)
    back = import_hf(export_hf(model), hf_config(model.config, NAMES[: model.config.num_classes]), "here")
    assert back.config == model.config
    assert all(torch.equal(tensor, back.state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("change", "said"), [({"pool": "gap"}, "average pooling"), ({"pre_logits": 9}, "pre-logits")])
def test_what_transformers_does_not_compute_is_not_written(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        export_hf(network(**change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu', not one of gelu"),
        ({"model_type": "deit"}, "model_type 'deit', not 'vit'"),
        ({"qkv_bias": False}, "qkv_bias False, not True"),
        ({"num_channels": 1}, "num_channels 1, not 3"),
        ({"image_size": [16, 32]}, r"image_size \[16, 32\], not 16"),
        ({"image_size": 32}, "image_size 32, not 16"),
        ({"num_attention_heads": 5}, "heads 5 does not divide width 24"),
        ({"num_attention_heads": "many"}, "heads Input should be a valid integer"),
        ({"intermediate_size": 41}, "intermediate_size 41, not 40"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3, not 2"),
    ],
)
def test_another_configuration_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    model = network()
    with pytest.raises(InputError, match=said) as caught:
        import_hf(export_hf(model), hf_config(model.config, NAMES) | change, "a/model.safetensors")
    assert str(caught.value).startswith("a/model.safetensors: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_tensor_too_many_or_too_few_is_named() -> None:
    model = network()
    tensors, tree = export_hf(model), hf_config(model.config, NAMES)
    name = "vit.encoder.layer.1.output.dense.bias"
    with pytest.raises(InputError, match=f"missing: {name}"):
        import_hf({key: value for key, value in tensors.items() if key != name}, tree, "here")
    with pytest.raises(InputError, match=r"output\.dense\.bias is \(25,\), not \(24,\)"):
        import_hf(tensors | {name: torch.zeros(25)}, tree, "here")
    with pytest.raises(InputError, match=r"not of a plain ViT: vit\.embeddings\.mask_token"):
        import_hf(tensors | {"vit.embeddings.mask_token": torch.zeros(1, 1, 24)}, tree, "here")
    with pytest.raises(InputError, match=r"no floating-point numbers: classifier\.bias"):
        import_hf(tensors | {"classifier.bias": torch.zeros(5, dtype=torch.int64)}, tree, "here")
    pooler = {"vit.pooler.dense.weight": torch.zeros(24, 24), "vit.pooler.dense.bias": torch.zeros(24)}
    assert import_hf(tensors | pooler, tree, "here").config == model.config


def test_class_names_are_those_of_the_file() -> None:
    assert hf_class_names(hf_config(CONFIG, NAMES)) == NAMES
    assert hf_class_names(hf_config(CONFIG, ())) == ()
    many = {"id2label": {str(number): f"class {number}" for number in (10, 9, 2, 0)}}
    assert hf_class_names(many) == ("class 0", "class 2", "class 9", "class 10")
    assert hf_class_names({"id2label": {"x": "y"}}) == hf_class_names({}) == ()


ODD: tuple[Any, ...] = (None, [], {}, [[1]], "x", "", -1, 0, 2.5, True, float("inf"), float("nan"), 10**30, {"a": []})


def test_any_configuration_is_read_or_refused() -> None:
    model = network()
    tensors, tree = export_hf(model), hf_config(model.config, NAMES)
    refused = 0
    for name in tree:
        for value in ODD:
            try:
                hf_class_names(tree | {name: value})
                import_hf(tensors, tree | {name: value}, "here")
            except InputError:
                refused += 1
    assert refused > 80
