"""The network's function: attention, patches and positions against independent references; the variants' shapes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models import attention
from pipeline.models.attention import SelfAttention, attend
from pipeline.models.config import ViTConfig
from pipeline.models.layers import Mlp, PatchEmbedding, patchify, sincos_2d
from pipeline.models.vit import ViT, has_weight_decay

SMALL = ViTConfig(image_size=16, patch_size=4, width=24, depth=2, mlp_width=48, heads=3, num_classes=5)


def small(**changes: object) -> ViTConfig:
    """SMALL with *changes*."""
    return ViTConfig.model_validate(SMALL.model_dump() | changes)


def images(count: int = 2, size: int = 16) -> torch.Tensor:
    """Seeded noise in [-1, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def with_random_weights(model: nn.Module) -> nn.Module:
    """*model* with every parameter drawn anew, so that zero heads and biases take part."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("tokens", [1, 49, 197])
def test_explicit_attention_equals_the_fused_one(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 2, 3, tokens, 16, generator=torch.Generator().manual_seed(0))
    fused = F.scaled_dot_product_attention(q, k, v)
    called = []
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *_: called.append(True))
    explicit = attend(q, k, v)
    assert not called, "this length was meant to take the explicit way"
    torch.testing.assert_close(explicit, fused, rtol=0, atol=1e-6)


def test_long_sequences_take_the_fused_attention() -> None:
    q, k, v = torch.randn(3, 1, 1, 600, 8, generator=torch.Generator().manual_seed(0))
    scores = (q.double() @ k.double().transpose(-1, -2)) / math.sqrt(8)
    torch.testing.assert_close(attend(q, k, v).double(), scores.softmax(-1) @ v.double(), rtol=0, atol=1e-6)


def test_self_attention_equals_torchs_own_with_the_same_weights() -> None:
    ours = with_random_weights(SelfAttention(24, 3))
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-5, atol=1e-5)


def test_patches_equal_a_convolution_with_the_same_weights() -> None:
    ours = with_random_weights(PatchEmbedding(4, 24))
    convolution = nn.Conv2d(3, 24, 4, stride=4)
    convolution.load_state_dict({"weight": ours.projection.weight.reshape(24, 3, 4, 4), "bias": ours.projection.bias})
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), convolution(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_patchify_lays_out_channel_row_column() -> None:
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4], x[1, :, 2:4, 2:4].flatten())  # patches go row by row: 4 is row 1, column 1


def test_filters_are_the_projection_as_pictures() -> None:
    embedding = with_random_weights(PatchEmbedding(4, 24))
    filters = embedding.filters()
    assert filters.shape == (24, 4, 4, 3)
    dot = (filters[5] * images()[0, :, :4, :4].permute(1, 2, 0)).sum() + embedding.projection.bias[5]
    torch.testing.assert_close(dot, embedding(images())[0, 0, 5], rtol=1e-5, atol=1e-6)


def test_sincos_positions_follow_big_vision() -> None:
    grid, width = 5, 16
    table = sincos_2d(grid, width)
    assert table.shape == (25, 16)
    for row, column in ((0, 0), (1, 3), (4, 2)):
        rates = [1 / 10_000 ** (index / 3) for index in range(4)]  # width / 4 - 1 = 3
        expected = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in rates]
        torch.testing.assert_close(table[row * grid + column], torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "tokens", "features"),
    [
        ({"pool": "cls"}, 17, 24),
        ({"pool": "gap"}, 16, 24),
        ({"pool": "cls", "pre_logits": 11}, 17, 11),
        ({"pool": "gap", "position": "sincos2d", "pre_logits": 24}, 16, 24),
        ({"pool": "cls", "position": "sincos2d"}, 17, 24),
        ({"gelu": "exact"}, 17, 24),
    ],
)
def test_shapes_of_the_variants(change: dict[str, object], tokens: int, features: int) -> None:
    model = with_random_weights(ViT(small(**change)))
    with torch.no_grad():
        assert model.tokens(images()).shape == (2, tokens, 24)
        assert model.features(images()).shape == (2, features)
        assert model(images()).shape == (2, 5)
        pooled = model.tokens(images())[:, 0] if model.config.pool == "cls" else model.tokens(images()).mean(1)
        expected = torch.tanh(model.pre_logits(pooled)) if model.pre_logits is not None else pooled
        torch.testing.assert_close(model.features(images()), expected)


def test_without_classes_there_is_no_head() -> None:
    model = ViT(small(num_classes=0)).eval()
    assert model.head is None
    assert torch.equal(model(images()), model.features(images()))


def test_sincos_positions_are_no_weights() -> None:
    model = ViT(small(position="sincos2d", pool="cls"))
    assert "positions" not in model.state_dict()
    assert not model.positions[0, 0].any()  # the class token's place
    assert torch.equal(model.positions[0, 1:], sincos_2d(4, 24))


@pytest.mark.parametrize(("gelu", "approximate"), [("tanh", "tanh"), ("exact", "none")])
def test_gelu_is_the_one_that_is_named(gelu: str, approximate: str) -> None:
    mlp = with_random_weights(Mlp(small(gelu=gelu)))
    x = torch.randn(3, 4, 24, generator=torch.Generator().manual_seed(2)) * 3
    expected = mlp.down(F.gelu(mlp.up(x), approximate=approximate))
    assert torch.equal(mlp(x), expected)


def test_dropout_acts_in_training_only() -> None:
    model = with_random_weights(ViT(small(dropout=0.5)))
    assert torch.equal(model(images()), model(images()))
    model.train()
    assert not torch.equal(model(images()), model(images()))


def test_the_order_of_patches_matters_through_positions_alone() -> None:
    model = with_random_weights(ViT(small(pool="gap")))
    swapped = images().roll(4, dims=3)  # whole patches change places
    assert not torch.allclose(model.features(images()), model.features(swapped), atol=1e-4)
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model.features(images()), model.features(swapped), rtol=1e-4, atol=1e-5)


def test_decay_touches_matrices_only() -> None:
    model = ViT(small(pre_logits=11))
    touched = {name for name, parameter in model.named_parameters() if has_weight_decay(name, parameter)}
    per_block = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    expected = {f"blocks.{number}.{layer}.weight" for number in range(2) for layer in per_block}
    assert touched == expected | {"patches.projection.weight", "pre_logits.weight", "head.weight"}


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_the_last_block_leaves_out_is_not_missed(pool: str, checkpointing: bool) -> None:
    """Logits and gradients are those of all tokens, of which the head sees one (cls) or the mean (gap)."""
    model = with_random_weights(ViT(small(pool=pool)))
    assert isinstance(model, ViT)
    model.checkpointing = checkpointing
    found = []
    for logits in (model(images()), model.head(model.head_input(model.tokens(images())))):  # type: ignore[misc]
        model.zero_grad()
        logits.square().sum().backward()
        found.append([logits, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
