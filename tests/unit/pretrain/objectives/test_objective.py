"""Softmax and sigmoid against formulas written out, their recipes, and one micro-batch or many with mixup."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.config import Config, build
from pipeline.base.errors import RecipeError
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.pretrain.objectives.classification import SigmoidObjective, SoftmaxObjective
from pipeline.pretrain.objectives.masked_patches import MaskedPatches
from pipeline.pretrain.objectives.objective import build_objective
from pipeline.pretrain.objectives.recipe import MaskedPatchesRecipe, ObjectiveRecipe, SigmoidRecipe, SoftmaxRecipe

CONFIG = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, mlp_width=32, heads=2, num_classes=5)


class Holder(Config):
    """A recipe with an objective, as PretrainRecipe has it."""

    objective: ObjectiveRecipe = SoftmaxRecipe()


class Fixed(nn.Module):
    """Gives the same logits whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)."""
        return self.logits


def logits(count: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some of both signs, a few of them large."""
    return (torch.randn(count, 5, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)


IMAGES = torch.zeros(6, 3, 8, 8)
ONE = torch.tensor([0, 4, 2, 2, 1, 3])
MANY = torch.tensor(
    [[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 0]]
)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_softmax_is_cross_entropy_with_smoothed_targets(smoothing: float) -> None:
    found = SoftmaxObjective(smoothing).loss(Fixed(logits()), IMAGES, ONE)
    targets = nn.functional.one_hot(ONE, 5) * (1 - smoothing) + smoothing / 5
    expected = -(targets * logits().double().log_softmax(dim=1)).sum(dim=1).mean()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_softmax_takes_soft_targets_too() -> None:
    targets = nn.functional.one_hot(ONE, 5).float()
    hard = SoftmaxObjective(0.1).loss(Fixed(logits()), IMAGES, ONE)
    assert SoftmaxObjective(0.1).loss(Fixed(logits()), IMAGES, targets).item() == pytest.approx(hard.item(), rel=1e-6)


def test_sigmoid_sums_over_classes_and_takes_the_mean_over_images() -> None:
    """big_vision's sigmoid_xent: -sum(y log p + (1 - y) log(1 - p)), then the mean."""
    found = SigmoidObjective().loss(Fixed(logits()), IMAGES, MANY.float())
    p = logits().double().sigmoid()
    expected = -(MANY * p.log() + (1 - MANY) * (1 - p).log()).sum(dim=1).mean()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("size", [100.0, -100.0])
def test_sigmoid_is_exact_far_from_zero(size: float) -> None:
    module = Fixed(torch.full((6, 5), size))
    loss = SigmoidObjective().loss(module, IMAGES, MANY.float())
    loss.backward()
    wrong = (5 - MANY.sum(1)) if size > 0 else MANY.sum(1)
    assert loss.item() == pytest.approx(100 * wrong.float().mean().item())
    assert torch.isfinite(module.logits.grad).all()


def test_a_head_bias_makes_the_first_loss_small() -> None:
    """Without it an untrained network of K classes begins at K log 2; the ViT has no say yet, its head being zero."""
    for bias, expected in ((0.0, 5 * math.log(2)), (-10.0, 10 * MANY.sum(1).float().mean().item())):
        vit = ViT(CONFIG.model_copy(update={"head_bias": bias}))
        assert SigmoidObjective().loss(vit, IMAGES, MANY.float()).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("objective", [SoftmaxObjective(), SigmoidObjective()])
def test_losses_are_computed_in_float32(objective: Any) -> None:
    labels = ONE if isinstance(objective, SoftmaxObjective) else MANY.float()
    low = objective.loss(Fixed(logits(dtype=torch.bfloat16)), IMAGES, labels)
    high = objective.loss(Fixed(logits(dtype=torch.bfloat16).float()), IMAGES, labels)
    assert low.dtype == torch.float32
    assert low.item() == high.item()


@pytest.mark.parametrize("objective", [SoftmaxObjective(), SigmoidObjective()])
def test_classification_trains_the_vit_itself(objective: Any) -> None:
    vit = ViT(CONFIG)
    assert objective.network(vit) is vit
    assert objective.vit_weights(dict(vit.state_dict())).keys() == vit.state_dict().keys()
    with pytest.raises(RecipeError, match="needs a head"):
        objective.network(ViT(CONFIG.model_copy(update={"num_classes": 0})))


@pytest.mark.parametrize(
    ("given", "recipe", "made", "labels"),
    [
        ("softmax", SoftmaxRecipe(), SoftmaxObjective(0.0), "one"),
        ({"name": "softmax", "label_smoothing": 0.1}, SoftmaxRecipe(label_smoothing=0.1), SoftmaxObjective(0.1), "one"),
        ("sigmoid", SigmoidRecipe(), SigmoidObjective(), "many"),
        ({"name": "masked_patches"}, MaskedPatchesRecipe(), MaskedPatches(0.5), "none"),
        (
            {"name": "masked_patches", "corrupted": 0.25},
            MaskedPatchesRecipe(corrupted=0.25),
            MaskedPatches(0.25),
            "none",
        ),
    ],
)
def test_a_recipe_names_an_objective_or_gives_its_settings(given: Any, recipe: Any, made: Any, labels: str) -> None:
    held = build(Holder, {"objective": given})
    assert held.objective == recipe
    assert build_objective(held.objective) == made
    assert held.objective.labels == labels
    assert build(Holder, held.model_dump(mode="json")) == held
    assert Holder(objective=recipe) == held


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("softmx", "'objective': no objective of that name; did you mean 'softmax'?"),
        ({"name": "mask_patches"}, "'objective': no objective of that name; did you mean 'masked_patches'?"),
        ("zzz", "there are softmax, sigmoid, masked_patches"),
        ({"label_smoothing": 0.1}, "'objective': name an objective; there are softmax"),
        ({"name": "softmax", "label_smoothin": 0.1}, "unknown key 'objective.label_smoothin' - did you mean"),
        ({"name": "sigmoid", "label_smoothing": 0.1}, "unknown key 'objective.label_smoothing'"),
        ({"name": "softmax", "label_smoothing": 1.0}, "'objective.label_smoothing': "),
        ({"name": "masked_patches", "corrupted": 0}, "'objective.corrupted': "),
        (7, "'objective': name an objective"),
    ],
)
def test_other_objectives_are_refused_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(Holder, {"objective": given})
    (line,) = caught.value.problems
    assert said in line
