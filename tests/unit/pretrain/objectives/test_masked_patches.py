"""Masked patch prediction: the draws and their shares, what the network sees, the colours, and that it learns them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.base.errors import RecipeError
from pipeline.base.world import World
from pipeline.models.config import ViTConfig
from pipeline.models.cost import activation_bytes_per_image, flops_per_image
from pipeline.models.vit import ViT, has_weight_decay
from pipeline.pretrain.objectives.masked_patches import MaskedPatches, MaskedPatchLoss, draw_corruption, mean_colours
from pipeline.pretrain.objectives.objective import build_objective
from pipeline.pretrain.objectives.recipe import (
    MaskedPatchesRecipe,
    ObjectiveRecipe,
    SigmoidRecipe,
    SoftmaxRecipe,
    num_corrupted,
    pretraining_flops_per_image,
)
from pipeline.train.loop import DrawingLoss, LoopPlan, train
from pipeline.train.metrics import MetricsLogger
from pipeline.train.recipe import OptimizerRecipe, ScheduleRecipe
from pipeline.train.torch_engine import TorchEngine

CONFIG = ViTConfig(image_size=16, patch_size=4, width=32, depth=2, mlp_width=64, heads=2)


def images(count: int = 4, seed: int = 0) -> Tensor:
    """Patches of one colour each, with noise on top, in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    patches = torch.rand(count, 3, 4, 4, generator=draw).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (patches * 1.8 - 0.9 + 0.05 * torch.randn(count, 3, 16, 16, generator=draw)).clamp(-1, 1)


def test_shares_are_those_of_the_paper() -> None:
    """50 % corrupted exactly; of them 80 % masked, 10 % another's, 10 % kept: over 98,000 patches, to 4 sigma."""
    drawn = draw_corruption(0, range(1000), 196, 0.5)
    assert drawn.chosen.shape == drawn.sources.shape == drawn.masked.shape == (1000, 98)
    own = drawn.sources == drawn.chosen
    shares = [drawn.masked.mean(), (~own).mean(), (own & ~drawn.masked).mean()]
    assert not (drawn.masked & ~own).any()
    for share, expected in zip(shares, (0.8, 0.1, 0.1), strict=True):
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 98_000))


def test_patches_are_chosen_evenly_and_once_and_sources_are_of_others() -> None:
    drawn = draw_corruption(0, range(2000), 16, 0.5)
    assert (np.diff(drawn.chosen) > 0).all()
    counts = np.bincount(drawn.chosen.ravel(), minlength=16)
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(2000 * 0.25)
    moved = drawn.sources[drawn.sources != drawn.chosen]
    assert set(moved.tolist()) == set(range(16))
    few = draw_corruption(0, range(4000), 2, 1.0)  # another patch of two is never the same
    assert (few.sources != few.chosen).mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 8000))


def test_draws_hang_on_seed_and_position_alone() -> None:
    whole = draw_corruption(3, range(64), 49, 0.5)
    for positions in ([5], [63, 0], range(10, 20)):
        part = draw_corruption(3, positions, 49, 0.5)
        for name in ("chosen", "sources", "masked"):
            assert (getattr(part, name) == getattr(whole, name)[list(positions)]).all()
    assert not (draw_corruption(4, range(64), 49, 0.5).chosen == whole.chosen).all(axis=1).any()
    assert len({tuple(row) for row in whole.chosen.tolist()}) == 64


@pytest.mark.parametrize(("patches", "share", "expected"), [(196, 0.5, 98), (4, 0.1, 1), (1, 0.5, 1), (16, 1.0, 16)])
def test_how_many_are_corrupted(patches: int, share: float, expected: int) -> None:
    assert num_corrupted(patches, share) == expected
    drawn = draw_corruption(0, range(5), patches, share)
    assert drawn.chosen.shape == (5, expected)
    assert ((drawn.sources >= 0) & (drawn.sources < patches)).all()


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_the_network_sees_masked_moved_and_kept_embeddings(pool: str) -> None:
    """By what reaches the encoder, patch by patch."""
    network: Any = MaskedPatches().network(ViT(CONFIG.model_copy(update={"pool": pool}), seed=1))
    with torch.no_grad():
        network.mask.normal_()
        network.decoder.weight.normal_()
    given: list[Tensor] = []
    encode = network.vit.encode
    network.vit.encode = lambda patches: given.append(patches) or encode(patches)
    pictures = images()
    logits, colours = network(pictures, 7, range(4))
    drawn = draw_corruption(7, range(4), 16, 0.5)
    own = network.vit.embed(pictures)
    kinds = set()
    for image in range(4):
        row = {int(patch): at for at, patch in enumerate(drawn.chosen[image])}
        for patch in range(16):
            wanted = own[image, patch]
            if patch in row and drawn.masked[image, row[patch]]:
                wanted = network.mask[0, 0]
                kinds.add("masked")
            elif patch in row:
                source = int(drawn.sources[image, row[patch]])
                kinds.add("kept" if source == patch else "moved")
                wanted = own[image, source]
            assert torch.equal(given[0][image, patch], wanted)
    assert kinds == {"masked", "moved", "kept"}
    assert torch.equal(colours, mean_colours(pictures, 4).gather(1, torch.from_numpy(drawn.chosen)))
    tokens = encode(given[0])[:, (1 if pool == "cls" else 0) :]
    expected = network.decoder(torch.stack([tokens[image][drawn.chosen[image]] for image in range(4)]))
    torch.testing.assert_close(logits, expected)


def test_colours_are_the_mean_of_each_channel_in_eight_levels() -> None:
    patches = torch.tensor([[0, 0, 0], [255, 255, 255], [31, 32, 0], [128, 127, 64]], dtype=torch.float32)
    picture = patches.T.reshape(1, 3, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3) / 127.5 - 1
    assert mean_colours(picture, 4).tolist() == [[0, 7 * 64 + 7 * 8 + 7, 8, 4 * 64 + 3 * 8 + 2]]
    halves = torch.cat([torch.full((1, 3, 4, 2), -1.0), torch.full((1, 3, 4, 2), 1.0)], dim=3)
    assert mean_colours(halves, 4).tolist() == [[3 * 64 + 3 * 8 + 3]]  # of 127.5
    assert mean_colours(images().to(torch.bfloat16), 4).dtype == torch.int64


def test_an_untrained_network_guesses() -> None:
    network = MaskedPatches().network(ViT(CONFIG))
    loss = MaskedPatchLoss()(network, images(), torch.full((4,), -1))
    assert loss.item() == pytest.approx(np.log(512), rel=1e-5)


def test_a_network_with_a_head_is_refused() -> None:
    for fields in ({"num_classes": 3}, {"pre_logits": 8}):
        with pytest.raises(RecipeError, match="trains no head"):
            MaskedPatches().network(ViT(CONFIG.model_copy(update=fields)))


def test_the_weights_of_the_vit_come_out_by_its_own_names() -> None:
    objective, vit = MaskedPatches(), ViT(CONFIG, seed=3)
    network = objective.network(vit)
    found = objective.vit_weights({name: value.detach() for name, value in network.named_parameters()})
    again = ViT(CONFIG, seed=4)
    again.load_state_dict(found)
    torch.testing.assert_close(again(images()), vit(images()), rtol=0, atol=0)
    extra = {name for name, _ in network.named_parameters()} - {f"vit.{name}" for name in found}
    assert extra == {"mask", "decoder.weight", "decoder.bias"}
    assert [name for name in sorted(extra) if has_weight_decay(name, network.get_parameter(name))] == ["decoder.weight"]


def test_every_parameter_has_a_gradient() -> None:
    """Or ZeRO would wait for some of them."""
    network: Any = MaskedPatches().network(ViT(CONFIG))
    with torch.no_grad():
        network.decoder.weight.normal_()
    MaskedPatchLoss().for_samples(0, range(4))(network, images(), torch.full((4,), -1)).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


class Batch:
    """Pictures at their positions in the global order."""

    coefficient = 1.0

    def __init__(self, step: int, count: int, first: int = 0, of: int | None = None) -> None:
        whole = images(count, seed=step % 4)
        mine = slice(first, first + (of or count))
        self.images = ((whole[mine] + 1) * 127.5).round().to(torch.uint8)
        self.labels = torch.full((len(self.images),), -1)
        self.positions = tuple(range(step * count, step * count + count))[mine]
        self.partners: Tensor | None = None


class Plain(Batch):
    """Pictures of one of six colours each: what is masked can be told by what is not."""

    def __init__(self, step: int, count: int) -> None:
        super().__init__(step, count)
        draw = np.random.default_rng(step)
        colours = np.random.default_rng(0).integers(0, 256, (6, 3, 1, 1), dtype=np.uint8)
        self.images = torch.from_numpy(colours[draw.integers(0, 6, count)]).expand(-1, -1, 16, 16).contiguous()


def test_it_learns_the_colours_from_the_patches_around() -> None:
    losses: list[float] = []

    class Noting(TorchEngine):
        def update(self, *arguments: Any) -> Any:
            result = super().update(*arguments)
            losses.append(result.loss)
            return result

    objective = MaskedPatches()
    engine = Noting(objective.network(ViT(CONFIG)), OptimizerRecipe(weight_decay=0.0))
    plan = LoopPlan(0, 60, 0, 1e-2, ScheduleRecipe(decay="constant", warmup_steps=5), 16)
    assert isinstance(objective.loss, DrawingLoss)
    train(engine, (Plain(step, 16) for step in range(60)), objective.loss, plan, World(), MetricsLogger(None, 1, 16))
    assert losses[0] == pytest.approx(np.log(512), rel=1e-4)
    assert sum(losses[-5:]) / 5 < 0.5 * np.log(6), "without its neighbours a masked patch costs log(6)"


def test_draws_are_the_same_at_every_world_size_and_micro_batch() -> None:
    """Two halves of a global batch, and micro-batches of two, see the corruption that the whole batch does."""
    seen: dict[int, list[Tensor]] = {}

    def first_inputs(world: World, micro: int) -> dict[int, Tensor]:
        network: Any = MaskedPatches().network(ViT(CONFIG))
        with torch.no_grad():
            network.mask.fill_(9.0)
        found: dict[int, Tensor] = {}
        encode = network.vit.encode
        queue: list[Tensor] = []
        network.vit.encode = lambda patches: queue.append(patches.detach()) or encode(patches)
        count = 8 // world.size
        batch = Batch(0, 8, world.rank * count, count)
        plan = LoopPlan(0, 1, 5, 1e-3, ScheduleRecipe(warmup_steps=0), 8, micro)
        engine = TorchEngine(network, OptimizerRecipe())
        train(engine, iter([batch]), MaskedPatchLoss(), plan, world, MetricsLogger(None, 1, 8))
        for position, patches in zip(batch.positions, torch.cat(queue), strict=True):
            found[position] = patches
        return found

    for world, micro in [(World(), 0), (World(), 2), (World(0, 2), 0), (World(1, 2), 1)]:
        for position, patches in first_inputs(world, micro).items():
            seen.setdefault(position, []).append(patches)
    assert len(seen) == 8
    for views in seen.values():
        assert len(views) == 3
        for view in views[1:]:
            torch.testing.assert_close(view, views[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize(
    "objective", [MaskedPatchesRecipe(), MaskedPatchesRecipe(corrupted=0.3), SoftmaxRecipe(), SigmoidRecipe()]
)
def test_flops_are_those_that_torch_counts(objective: ObjectiveRecipe, pool: str) -> None:
    """Forward and backward, the decoder included; with a class token the last block computes what is read."""
    is_masked = isinstance(objective, MaskedPatchesRecipe)
    config = ViTConfig.model_validate(CONFIG.model_dump() | {"pool": pool, "num_classes": 0 if is_masked else 7})
    made = build_objective(objective)
    network, labels = made.network(ViT(config)), torch.zeros(4, dtype=torch.int64)
    if isinstance(objective, SigmoidRecipe):
        labels = torch.zeros(4, 7)
    with FlopCounterMode(display=False) as forward:
        loss = made.loss(network, images(), labels)
    network_flops = flops_per_image(config, all_rows=objective.reads_all_tokens).total
    assert forward.get_total_flops() == 4 * (network_flops + objective.extra_flops_per_image(config))
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == 4 * pretraining_flops_per_image(objective, config)


def test_activations_of_all_rows_are_those_of_whole_blocks() -> None:
    gap = CONFIG.model_copy(update={"pool": "gap"})
    assert activation_bytes_per_image(gap, 2, all_rows=True) == activation_bytes_per_image(gap, 2)
    assert activation_bytes_per_image(CONFIG, 2, all_rows=True) > activation_bytes_per_image(CONFIG, 2)
