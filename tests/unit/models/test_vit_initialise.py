"""What each kind of tensor is drawn from (PROTOCOLS, Init), and that a seed fixes all of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT

CONFIG = ViTConfig(
    image_size=64, patch_size=8, width=96, depth=3, mlp_width=320, heads=4, num_classes=7, pre_logits=80, head_bias=-6.9
)


@pytest.fixture(scope="module")
def model() -> ViT:
    """One network at its start."""
    return ViT(CONFIG, seed=5)


def assert_xavier_uniform(kernel: Tensor) -> None:
    """*kernel* (fan out, fan in) fills the interval of Xavier-uniform for its own shape, evenly."""
    bound, kernel = math.sqrt(6 / sum(kernel.shape)), kernel.detach()
    assert kernel.abs().max() <= bound
    assert kernel.abs().max() > 0.99 * bound
    assert float(kernel.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(float(kernel.mean())) < 4 * bound / math.sqrt(3 * kernel.numel())


def test_patch_projection_and_pre_logits_are_lecun_normal(model: ViT) -> None:
    assert model.pre_logits is not None
    for kernel in (model.patches.projection.weight.detach(), model.pre_logits.weight.detach()):
        deviation = 1 / math.sqrt(kernel.shape[1])
        assert float(kernel.std()) == pytest.approx(deviation, rel=0.03)
        assert abs(float(kernel.mean())) < 4 * deviation / math.sqrt(kernel.numel())
        cut = 2 * deviation / 0.8796  # of a normal cut at two deviations, 0.8796 of the deviation is left
        assert 0.97 * cut < float(kernel.abs().max()) <= cut
        inside = float((kernel.abs() < cut / 2).float().mean())
        assert inside == pytest.approx(0.6827 / 0.9545, abs=0.02)


def test_dense_kernels_are_xavier_uniform(model: ViT) -> None:
    for block in model.blocks:
        for kernel in (block.mlp.up.weight, block.mlp.down.weight, block.attention.out.weight):
            assert_xavier_uniform(kernel)


def test_q_k_and_v_each_have_the_scale_of_their_own_shape(model: ViT) -> None:
    fused_bound = math.sqrt(6 / (4 * CONFIG.width))
    for block in model.blocks:
        for kernel in block.attention.qkv.weight.chunk(3):
            assert kernel.shape == (CONFIG.width, CONFIG.width)
            assert_xavier_uniform(kernel)
            assert kernel.abs().max() > 1.2 * fused_bound


def test_mlp_biases_are_tiny_but_not_zero(model: ViT) -> None:
    for block in model.blocks:
        for bias in (block.mlp.up.bias, block.mlp.down.bias):
            assert float(bias.detach().std()) == pytest.approx(1e-6, rel=0.3)


def test_head_cls_and_other_biases(model: ViT) -> None:
    assert model.head is not None
    assert model.cls is not None
    assert model.pre_logits is not None
    assert not model.head.weight.any()
    assert (model.head.bias == torch.tensor(-6.9)).all()
    assert not model.cls.any()
    zero = [model.patches.projection.bias, model.pre_logits.bias, model.norm.bias]
    zero += [bias for block in model.blocks for bias in (block.attention.qkv.bias, block.attention.out.bias)]
    assert not any(bias.any() for bias in zero)
    assert (model.norm.weight == 1).all()


@pytest.mark.parametrize("std", [0.02, 1 / math.sqrt(96)])
def test_learned_positions_have_the_stated_deviation(std: float) -> None:
    model = ViT(CONFIG.model_copy(update={"position_std": std}), seed=1)
    assert model.positions.shape == (1, 65, 96)
    assert float(model.positions.detach().std()) == pytest.approx(std, rel=0.05)


def test_a_seed_fixes_every_weight() -> None:
    torch.manual_seed(0)
    one = ViT(CONFIG, seed=5).state_dict()
    torch.manual_seed(99)
    same, other = ViT(CONFIG, seed=5).state_dict(), ViT(CONFIG, seed=6).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if name.endswith(("qkv.weight", "up.weight", "up.bias", "positions"))]
    assert len(drawn) == 10
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_blocks_do_not_share_their_draws(model: ViT) -> None:
    first, second = model.blocks[0], model.blocks[1]
    assert not torch.equal(first.attention.qkv.weight, second.attention.qkv.weight)
    q, k, v = first.attention.qkv.weight.chunk(3)
    assert not torch.equal(q, k)
    assert not torch.equal(k, v)
