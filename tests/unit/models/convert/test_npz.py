"""The official npz naming: against a second reading of the paper's JAX code in numpy, and the way there and back."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig
from pipeline.models.convert.foreign_file import read_tensors
from pipeline.models.convert.npz import export_npz, import_npz
from pipeline.models.vit import ViT
from tests.support.networks import images, randomised

CONFIG = ViTConfig(image_size=16, patch_size=4, width=24, depth=3, mlp_width=40, heads=3, num_classes=5)
Arrays = dict[str, np.ndarray[Any, Any]]


def network(**changes: object) -> ViT:
    """A ViT all of whose weights are drawn."""
    return randomised(ViTConfig.model_validate(CONFIG.model_dump() | changes))


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Through the bytes of an npz file."""
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return read_tensors(sink.getvalue(), "official.npz")


def flax_forward(arrays: Arrays, pixels_BHWC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """vit_jax/models_vit.py as einsums over the kernels' own axes, in float64."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    p = w["embedding/kernel"].shape[0]
    b, h, width, c = pixels_BHWC.shape
    tiles = pixels_BHWC.reshape(b, h // p, p, width // p, p, c)
    x = np.einsum("bipjqc,pqcd->bijd", tiles, w["embedding/kernel"]) + w["embedding/bias"]
    x = x.reshape(b, -1, x.shape[-1])
    if "cls" in w:
        x = np.concatenate([np.repeat(w["cls"], b, axis=0), x], axis=1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    depth = 1 + max(int(name.split("/")[1].split("_")[1]) for name in w if "encoderblock" in name)
    for index in range(depth):
        block = f"Transformer/encoderblock_{index}"
        x = x + flax_attention(w, f"{block}/MultiHeadDotProductAttention_1", flax_norm(w, f"{block}/LayerNorm_0", x))
        y = flax_dense(w, f"{block}/MlpBlock_3/Dense_0", flax_norm(w, f"{block}/LayerNorm_2", x))
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + flax_dense(w, f"{block}/MlpBlock_3/Dense_1", y)
    x = flax_norm(w, "Transformer/encoder_norm", x)
    x = x[:, 0] if "cls" in w else x.mean(axis=1)
    if "pre_logits/kernel" in w:
        x = np.tanh(flax_dense(w, "pre_logits", x))
    return flax_dense(w, "head", x)


def flax_dense(w: Arrays, name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def flax_norm(w: Arrays, name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]


def flax_attention(w: Arrays, name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    q, k, v = (
        np.einsum("bnd,dhe->bhne", x, w[f"{name}/{part}/kernel"]) + w[f"{name}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    scores = np.einsum("bhne,bhme->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhnm,bhme->bhne", weights / weights.sum(-1, keepdims=True), v)
    return np.einsum("bhne,hed->bnd", mixed, w[f"{name}/out/kernel"]) + w[f"{name}/out/bias"]


@pytest.mark.parametrize("change", [{}, {"pool": "gap"}, {"pre_logits": 11}])
def test_the_papers_code_computes_what_we_do(change: dict[str, object]) -> None:
    model = network(**change)
    theirs = flax_forward(export_npz(model), images().permute(0, 2, 3, 1).numpy().astype(np.float64))
    with torch.no_grad():
        np.testing.assert_allclose(model(images()).numpy(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"pool": "gap"},
        {"pre_logits": 11},
        {"num_classes": 0},
        {"num_classes": 0, "pre_logits": 24},
        {"pool": "gap", "position": "sincos2d", "pre_logits": 24},
        {"position": "sincos2d"},
        {"depth": 11},
    ],
)
def test_out_and_in_again_is_bit_by_bit_the_same(change: dict[str, object]) -> None:
    model = network(**change)
    back = import_npz(as_tensors(export_npz(model)), "official.npz", image_size=16)
    assert back.config == model.config
    state = model.state_dict()
    assert back.state.keys() == state.keys()
    assert all(torch.equal(tensor, back.state[name]) for name, tensor in state.items())


def test_the_names_are_the_official_ones() -> None:
    names = set(export_npz(network(depth=1, pre_logits=24)))
    block = "Transformer/encoderblock_0"
    expected = {"cls", "embedding/kernel", "embedding/bias", "Transformer/posembed_input/pos_embedding"}
    expected |= {f"{layer}/{part}" for layer in ("head", "pre_logits") for part in ("kernel", "bias")}
    norms = ("Transformer/encoder_norm", f"{block}/LayerNorm_0", f"{block}/LayerNorm_2")
    expected |= {f"{norm}/{part}" for norm in norms for part in ("scale", "bias")}
    dense = [f"{block}/MlpBlock_3/Dense_{number}" for number in (0, 1)]
    dense += [f"{block}/MultiHeadDotProductAttention_1/{part}" for part in ("query", "key", "value", "out")]
    expected |= {f"{layer}/{part}" for layer in dense for part in ("kernel", "bias")}
    assert names == expected


def big_vision_name(name: str) -> str:
    """The same module as big_vision numbers it."""
    table = {"Attention_1/": "Attention_0/", "LayerNorm_2/": "LayerNorm_1/", "MlpBlock_3/": "MlpBlock_0/"}
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("place", ["pos_embedding", "Transformer/pos_embedding"])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_big_visions_naming_is_read(place: str, prefix: str) -> None:
    model = network(pool="gap", pre_logits=24)
    arrays = {prefix + big_vision_name(name): array for name, array in export_npz(model).items()}
    arrays[prefix + place] = arrays.pop(f"{prefix}Transformer/posembed_input/pos_embedding")
    back = import_npz(as_tensors(arrays), "bv.npz")
    assert all(torch.equal(tensor, back.state[name]) for name, tensor in model.state_dict().items())


def test_a_class_token_without_a_position_of_its_own_gets_one_of_zeros() -> None:
    model = network()
    with torch.no_grad():
        model.positions[:, 0] = 0
    arrays = {big_vision_name(name): array for name, array in export_npz(model).items()}
    arrays["pos_embedding"] = arrays.pop("Transformer/posembed_input/pos_embedding")[:, 1:]
    again = ViT(model.config).eval()
    again.load_state_dict(import_npz(as_tensors(arrays), "bv.npz").state)
    assert torch.equal(again(images()), model(images()))


def test_bfloat16_as_numpy_writes_it_is_read() -> None:
    model = network().to(torch.bfloat16)
    arrays = export_npz(model)
    raw = {name: (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") for name, array in arrays.items()}
    back = import_npz(as_tensors(raw), "bf16.npz")
    assert all(torch.equal(tensor.float(), back.state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", [{"gelu": "exact"}, {"norm_epsilon": 1e-12}])
def test_what_the_papers_code_does_not_compute_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="this network has"):
        export_npz(network(**change))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor too few": ({"Transformer/encoder_norm/bias": None}, "missing: Transformer/encoder_norm/bias"),
    "no patches": ({"embedding/kernel": None}, "missing: embedding/kernel"),
    "a block too few": ({"Transformer/encoderblock_1": None}, "no tensors of block 1"),
    "a tensor too many": ({"MAPHead_0/probe": np.zeros((1, 1, 24), "f4")}, "not of a plain ViT: MAPHead_0/probe"),
    "a hybrid": ({"conv_root/kernel": np.zeros((7, 7, 3, 64), "f4")}, "not of a plain ViT: conv_root/kernel"),
    "another shape": ({"head/bias": np.zeros(6, "f4")}, r"head/bias is \(6,\), not \(5,\)"),
    "oblong patches": ({"embedding/kernel": np.zeros((4, 2, 3, 24), "f4")}, "4 x 2 patches"),
    "grey pixels": ({"embedding/kernel": np.zeros((4, 4, 1, 24), "f4")}, "1 channels"),
    "an oblong grid": (
        {"Transformer/posembed_input/pos_embedding": np.zeros((1, 15, 24), "f4")},
        "15 rows, which are no square grid",
    ),
    "a flat kernel": (
        {"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": np.zeros((24, 24), "f4")},
        "it should have 3 axes",
    ),
    "empty": ({"embedding/kernel": np.zeros((4, 4, 3, 0), "f4")}, "none empty"),
    "integers": ({"cls": np.zeros((1, 1, 24), "i4")}, "no floating-point numbers: cls"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    arrays = export_npz(network())
    gone = [name for name, value in change.items() if value is None]
    kept = {name: array for name, array in arrays.items() if not any(name.startswith(start) for start in gone)}
    kept |= {name: array for name, array in change.items() if array is not None}
    with pytest.raises(InputError, match=said) as caught:
        import_npz(as_tensors(kept), "official.npz")
    assert str(caught.value).startswith("official.npz: ")
    assert len(str(caught.value).splitlines()) == 1
