"""Weights to and from timm's naming, and the normalisation of pixels folded into the patches.

timm itself is no dependency of the tests: it needs torchvision of the very build of torch that is installed. Names and
shapes are checked against what timm 1.0.31 was seen to have, the function against a second writing of its forward pass.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig, config_by_name
from pipeline.models.convert.tensor_map import fold_normalisation
from pipeline.models.convert.timm import export_timm, import_timm, timm_config
from pipeline.models.vit import ViT
from tests.support.networks import images, randomised

CONFIG = ViTConfig(image_size=16, patch_size=4, width=24, depth=2, mlp_width=40, heads=3, num_classes=5, gelu="exact")


def network(**changes: object) -> ViT:
    """A ViT all of whose weights are drawn."""
    return randomised(ViTConfig.model_validate(CONFIG.model_dump() | changes))


def ours(imported: Any) -> ViT:
    """The network of what was imported."""
    model = ViT(imported.config)
    model.load_state_dict(imported.state)
    return model.eval()


# timm 1.0.31, create_model("vit_tiny_patch16_224").state_dict(): all but blocks 1 to 11
TINY = {
    "cls_token": (1, 1, 192),
    "pos_embed": (1, 197, 192),
    "patch_embed.proj.weight": (192, 3, 16, 16),
    "patch_embed.proj.bias": (192,),
    "blocks.0.norm1.weight": (192,),
    "blocks.0.norm1.bias": (192,),
    "blocks.0.attn.qkv.weight": (576, 192),
    "blocks.0.attn.qkv.bias": (576,),
    "blocks.0.attn.proj.weight": (192, 192),
    "blocks.0.attn.proj.bias": (192,),
    "blocks.0.norm2.weight": (192,),
    "blocks.0.norm2.bias": (192,),
    "blocks.0.mlp.fc1.weight": (768, 192),
    "blocks.0.mlp.fc1.bias": (768,),
    "blocks.0.mlp.fc2.weight": (192, 768),
    "blocks.0.mlp.fc2.bias": (192,),
    "norm.weight": (192,),
    "norm.bias": (192,),
    "head.weight": (1000, 192),
    "head.bias": (1000,),
}


def test_names_and_shapes_are_timms() -> None:
    found = export_timm(ViT(config_by_name("Ti/16", num_classes=1000)))
    others = [name for name in found if name.startswith("blocks.") and not name.startswith("blocks.0.")]
    assert len(others) == 11 * 12
    assert {name: tuple(found[name].shape) for name in found if name not in others} == TINY


@pytest.mark.parametrize(
    "change", [{}, {"pool": "gap"}, {"num_classes": 0}, {"gelu": "tanh"}, {"mlp_width": 41}, {"depth": 11}]
)
def test_out_and_in_again_is_bit_by_bit_the_same(change: dict[str, object]) -> None:
    model = network(**change)
    back = import_timm(export_timm(model), timm_config(model.config, {}, ()), "here")
    assert back.config == model.config
    assert all(torch.equal(tensor, back.state[name]) for name, tensor in model.state_dict().items())


def timm_forward(w: dict[str, torch.Tensor], heads: int, gelu: str, x: torch.Tensor) -> torch.Tensor:
    """timm's VisionTransformer (1.0.31) by torch's functions; was seen to equal timm itself on these networks."""

    def dense(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, y.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    kernel = w["patch_embed.proj.weight"]
    x = F.conv2d(x, kernel, w["patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    if "cls_token" in w:
        x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + w["pos_embed"]
    for index in range(sum(name.endswith("norm1.bias") for name in w)):
        block = f"blocks.{index}"
        qkv = dense(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(-1, (3, heads, -1))
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + dense(f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        hidden = F.gelu(dense(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)), approximate=gelu)
        x = x + dense(f"{block}.mlp.fc2", hidden)
    x = norm("norm", x)
    x = x[:, 0] if "cls_token" in w else x.mean(dim=1)
    return dense("head", x) if "head.weight" in w else x


@pytest.mark.parametrize(
    "change",
    [{}, {"pool": "gap"}, {"gelu": "tanh"}, {"position": "sincos2d"}, {"mlp_width": 41}, {"num_classes": 0}],
)
def test_timm_computes_what_we_do(change: dict[str, object]) -> None:
    model = network(**change)
    approximate = "none" if model.config.gelu == "exact" else "tanh"
    theirs = timm_forward(export_timm(model), 3, approximate, images())
    with torch.no_grad():
        torch.testing.assert_close(theirs, model(images()), rtol=1e-5, atol=1e-5)


def test_heads_of_no_named_size_have_to_be_told() -> None:
    model = network()
    with pytest.raises(
        InputError, match=r"width 24, depth 2, MLP 40, so its number of heads is not known - add --heads"
    ):
        import_timm(export_timm(model), {}, "here")
    assert import_timm(export_timm(model), {}, "here", heads=3).config == model.config
    assert import_timm(export_timm(model), {}, "here", heads=3, gelu="tanh").config.gelu == "tanh"
    tiny = export_timm(ViT(config_by_name("Ti/16", num_classes=1000)))
    assert import_timm(tiny, {}, "here").config == config_by_name("Ti/16", num_classes=1000, gelu="exact")


def test_a_class_token_without_a_position_of_its_own_gets_one_of_zeros() -> None:
    model = network()
    with torch.no_grad():
        model.positions[:, 0] = 0
    tensors = export_timm(model)
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    assert torch.equal(ours(import_timm(tensors, {}, "here", heads=3))(images()), model(images()))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"pre_logits": 9}, "pre-logits"), ({"norm_epsilon": 1e-12}, "epsilon 1e-12")],
)
def test_what_timm_does_not_compute_is_not_written(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        export_timm(network(**change))


@pytest.mark.parametrize(
    ("extra", "tree", "said"),
    [
        ({"reg_token": (1, 4, 24)}, {}, "not of a plain ViT: reg_token"),
        ({"fc_norm.weight": (24,), "fc_norm.bias": (24,)}, {}, "fc_norm.bias, fc_norm.weight"),
        ({"blocks.0.ls1.gamma": (24,)}, {}, "not of a plain ViT: blocks.0.ls1.gamma"),
        ({"norm.bias": (25,)}, {}, r"norm.bias is \(25,\), not \(24,\)"),
        ({}, {"global_pool": "avg"}, "pools all tokens beside a class token"),
        ({}, {"model_args": {"act_layer": "quick_gelu"}}, "act_layer 'quick_gelu' is not read"),
    ],
)
def test_another_kind_of_network_is_refused_by_name(extra: Any, tree: Any, said: str) -> None:
    tensors = export_timm(network()) | {name: torch.zeros(shape) for name, shape in extra.items()}
    with pytest.raises(InputError, match=said) as caught:
        import_timm(tensors, tree, "x.safetensors", heads=3)
    assert str(caught.value).startswith("x.safetensors: ")


def test_another_normalisation_is_folded_into_the_patches() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = network()
    folded = network()
    folded.load_state_dict(fold_normalisation(dict(model.state_dict()), mean, std))
    pixels = (images() + 1) / 2
    theirs = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), model(theirs), rtol=1e-5, atol=1e-5)
    half = fold_normalisation(dict(model.state_dict()), (0.5,) * 3, (0.5,) * 3)
    assert all(torch.equal(half[name], tensor) for name, tensor in model.state_dict().items())


def test_timm_gets_the_mlps_width_back_from_its_ratio() -> None:
    for width, mlp_width in [
        (24, 41),
        (192, 768),
        *((width, mlp) for width in (12, 84, 1408) for mlp in range(1, 999)),
    ]:
        config = ViTConfig(width=width, heads=1, mlp_width=mlp_width)
        assert int(width * timm_config(config, {}, ())["model_args"]["mlp_ratio"]) == mlp_width


def test_any_configuration_is_read_or_refused() -> None:
    tensors, tree = export_timm(network()), timm_config(CONFIG, {}, ())
    odd: tuple[Any, ...] = (None, [], {}, [[1]], "x", -1, 2.5, True, float("nan"), 10**30, {"a": []})
    changed = [tree | {name: value} for name in tree for value in odd]
    changed += [
        tree | {"model_args": tree["model_args"] | {name: value}} for name in tree["model_args"] for value in odd
    ]
    refused = 0
    for given in changed:
        try:
            import_timm(tensors, given, "here")
        except InputError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("change", "args"),
    [
        ({}, {"class_token": True, "global_pool": "token", "act_layer": "gelu"}),
        ({"pool": "gap", "gelu": "tanh"}, {"class_token": False, "global_pool": "avg", "act_layer": "gelu_tanh"}),
    ],
)
def test_the_configuration_is_one_that_timm_built_the_same_function_from(
    change: dict[str, object], args: dict[str, object]
) -> None:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 40 / 24}
    tree = timm_config(network(**change).config, {}, ("a", "b", "c", "d", "e"))
    assert tree["model_args"] == sizes | args | {"fc_norm": False, "drop_path_rate": 0.0}
    assert (tree["num_classes"], tree["label_names"]) == (5, ["a", "b", "c", "d", "e"])
