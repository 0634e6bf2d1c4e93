"""Stochastic depth, checkpointing, intermediate features, attention weights, and the two halves of the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.models.config import ViTConfig
from pipeline.models.layers import DropPath
from pipeline.models.vit import ViT
from tests.support.networks import images, randomised

CONFIG = ViTConfig(image_size=16, patch_size=4, width=24, depth=4, mlp_width=48, heads=3, num_classes=5)


def network(**changes: object) -> ViT:
    """A ViT all of whose weights are drawn, in evaluation mode."""
    return randomised(ViTConfig.model_validate(CONFIG.model_dump() | changes))


def gradients(model: ViT, seed: int) -> dict[str, Tensor]:
    """Of a loss that every output takes part in; dropout's draws come from *seed*."""
    torch.manual_seed(seed)
    model.zero_grad()
    model(images(6)).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("rates", [{}, {"dropout": 0.3}, {"drop_path": 0.5}, {"dropout": 0.3, "drop_path": 0.5}])
def test_checkpointing_has_the_same_gradients_from_the_same_draws(rates: dict[str, float]) -> None:
    model = network(**rates).train()
    plain = gradients(model, seed=1)
    after = torch.rand(1)
    model.checkpointing = True
    again = gradients(model, seed=1)
    assert torch.rand(1) == after, "checkpointing left torch's generator elsewhere"
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    if rates:
        other = gradients(model, seed=2)
        assert not torch.equal(plain["blocks.3.mlp.up.weight"], other["blocks.3.mlp.up.weight"])


def test_checkpointing_keeps_less_of_each_block() -> None:
    def kept(model: ViT) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(images(6))
        return sum(sizes)

    model = network().train()
    plain = kept(model)
    model.checkpointing = True
    assert kept(model) < plain / 4


def test_a_forward_pass_without_gradients_is_not_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    expected = model(images())
    model.checkpointing = True
    assert torch.equal(model(images()), expected)
    monkeypatch.setattr("pipeline.models.vit.checkpoint", lambda *_args, **_options: pytest.fail("checkpointed"))
    with torch.inference_mode():
        assert torch.equal(model(images()), expected)


def test_stochastic_depth_grows_from_nothing_to_the_rate() -> None:
    assert [block.drop_path.rate for block in network(drop_path=0.3).blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [block.drop_path.rate for block in network(drop_path=0.3, depth=1).blocks] == [0]


def test_stochastic_depth_leaves_out_whole_samples_and_keeps_the_mean() -> None:
    layer = DropPath(0.25)
    branch = torch.rand(4000, 3, 2, generator=torch.Generator().manual_seed(0)) + 1
    torch.manual_seed(3)
    out = layer(branch)
    kept = (out != 0).all(dim=(1, 2))
    assert torch.equal(kept, (out != 0).any(dim=(1, 2)))
    torch.testing.assert_close(out[kept], branch[kept] / 0.75)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.03)  # 4.4 standard deviations
    torch.manual_seed(3)
    assert torch.equal(layer(branch), out)
    assert layer.eval()(branch) is branch


def test_stochastic_depth_acts_on_both_branches_in_training_only() -> None:
    model = network(drop_path=0.5)
    block = model.blocks[3]
    x = torch.randn(512, 2, 24, generator=torch.Generator().manual_seed(2))
    whole = block(x)
    block.train()
    torch.manual_seed(0)
    out = block(x)
    attended = x + 2 * block.attention(block.norm1(x))
    ways = [x, x + 2 * block.mlp(block.norm2(x)), attended, attended + 2 * block.mlp(block.norm2(attended))]
    taken = torch.stack([(out - way).abs().amax(dim=(1, 2)) < 1e-4 for way in ways])
    assert taken.any(dim=0).all()
    assert taken.sum(dim=1).min() > 64  # each of the four ways is taken by about 128 of 512
    assert not torch.allclose(out, whole)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_tokens_are_encoded_embeddings(pool: str) -> None:
    model = network(pool=pool)
    patches = model.embed(images())
    assert patches.shape == (2, 16, 24)
    assert torch.equal(model.encode(patches), model.tokens(images()))


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_intermediate_features_are_the_outputs_of_blocks(pool: str) -> None:
    model = network(pool=pool)
    seen: dict[int, Tensor] = {}
    for number, block in enumerate(model.blocks, 1):
        block.register_forward_hook(lambda _module, _inputs, output, number=number: seen.update({number: output}))
    model(images())
    whole = dict(seen)
    seen.clear()
    found = model.intermediate(images(), [3, 1])
    assert set(found) == {1, 3}
    assert set(seen) == {1, 2, 3}, "it ran further than it had to"
    assert all(torch.equal(found[number], whole[number]) for number in found)
    normed = model.intermediate(images(), {4}, normed=True)[4]
    assert torch.equal(normed, model.tokens(images()))
    assert model.intermediate(images(), []) == {}


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_attention_weights_are_those_that_the_network_uses(pool: str) -> None:
    model = network(pool=pool)
    found = model.attention_weights(images(), (2, 4))
    tokens = model.config.num_tokens
    assert set(found) == {2, 4}
    for number, weights in found.items():
        assert weights.shape == (2, 3, tokens, tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, tokens))
        block = model.blocks[number - 1]
        x = block.norm1(model.intermediate(images(), [number - 1])[number - 1])
        values = block.attention.qkv(x)[..., 48:].unflatten(-1, (3, 8)).transpose(1, 2)
        mixed = block.attention.out((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, block.attention(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [[0], [5], [1, -1]])
def test_layers_that_there_are_not_are_refused(layers: list[int]) -> None:
    model = network()
    with pytest.raises(ValueError, match="they are 1 to 4"):
        model.intermediate(images(), layers)
    with pytest.raises(ValueError, match="they are 1 to 4"):
        model.attention_weights(images(), layers)


def test_the_norms_epsilon_is_the_configured_one() -> None:
    model = network(norm_epsilon=0.5)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [0.5] * 9
    assert not torch.allclose(model(images()), network()(images()))


def test_on_the_meta_device_nothing_is_drawn() -> None:
    with torch.device("meta"):
        model = ViT(CONFIG)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
