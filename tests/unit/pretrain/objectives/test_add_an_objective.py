"""An objective is added as README.md of the objectives says: one file, its recipe and two rows; nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.pretrain.objectives.objective import OBJECTIVES
from pipeline.pretrain.objectives.recipe import OBJECTIVE_RECIPES

ROOT = Path(__file__).parents[4]

TOY = '''
"""Every class against the right one, with a margin."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.vit import ViT


@dataclass(frozen=True)
class MarginObjective:
    """The right class has to win by *margin*."""

    margin: float

    def network(self, vit: ViT) -> nn.Module:
        """See Objective."""
        return vit

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """See Objective."""
        return F.multi_margin_loss(module(images).float(), labels, margin=self.margin)

    def vit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """See Objective."""
        return weights
'''
RECIPE = '''
class MarginRecipe(ObjectiveSettings):
    """Multi-class margin."""

    labels: ClassVar[LabelMode] = "one"
    name: Literal["margin"] = "margin"
    margin: float = Field(1.0, gt=0, description="by which the right class has to win")


'''
USE = """
import torch
from pipeline.base.config import build
from pipeline.models.vit import ViT
from pipeline.pretrain.objectives.objective import build_objective
from pipeline.pretrain.objectives.recipe import pretraining_flops_per_image
from pipeline.pretrain.recipe import PretrainRecipe

recipe = build(PretrainRecipe, {
    "run": "r", "dataset": "d", "steps": 10, "objective": {"name": "margin", "margin": 0.5},
    "model": {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "mlp_width": 32, "heads": 2, "num_classes": 4},
    "stream": {"batch_size": 4, "partitions": 1, "augment": {"size": 8}}, "transform": {"size": 8, "resize": 8},
    "schedule": {"warmup_steps": 1},
})
assert recipe.fingerprinted("d")["objective"] == {"name": "margin", "margin": 0.5}
objective = build_objective(recipe.objective)
network = objective.network(ViT(recipe.model, seed=1))
with torch.no_grad():
    for parameter in network.parameters():
        parameter.zero_()
images, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 3])
assert objective.loss(network, images, labels).item() == 0.5 * 3 / 4  # three of four classes miss the margin of 0.5
assert pretraining_flops_per_image(recipe.objective, recipe.model) > 0
print("trains")
"""


def house_with(folder: Path, *, recipe_row: bool, objective_row: bool) -> Path:
    """A copy of the house below *folder*, with the toy objective."""
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "*.parquet"))
    objectives = folder / "pipeline" / "pretrain" / "objectives"
    (objectives / "margin.py").write_text(TOY)
    edit(objectives / "recipe.py", "def num_corrupted(", RECIPE + "def num_corrupted(")
    if recipe_row:
        edit(objectives / "recipe.py", "| MaskedPatchesRecipe\n", "| MaskedPatchesRecipe | MarginRecipe\n")
    if objective_row:
        row = "    MarginRecipe: lambda recipe: MarginObjective(recipe.margin),\n    SoftmaxRecipe:"
        edit(objectives / "objective.py", "    SoftmaxRecipe:", row)
        imports = "from pipeline.pretrain.objectives.margin import MarginObjective\n"
        imports += "from pipeline.pretrain.objectives.recipe import MarginRecipe, "
        edit(objectives / "objective.py", "from pipeline.pretrain.objectives.recipe import ", imports)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has {text.count(old)} of {old!r}: README.md and this test go by it"
    path.write_text(text.replace(old, new))


def use(house: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", USE], cwd=house, env=environment, capture_output=True, text=True)


def test_a_file_a_recipe_and_two_rows_are_enough(tmp_path: Path) -> None:
    ended = use(house_with(tmp_path, recipe_row=True, objective_row=True))
    assert (ended.returncode, ended.stdout) == (0, "trains\n"), ended.stderr


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("recipe_row", "no objective of that name; there are softmax, sigmoid, masked_patches"),
        ("objective_row", "KeyError: <class 'pipeline.pretrain.objectives.recipe.MarginRecipe'>"),
    ],
)
def test_without_a_row_it_is_not_there(tmp_path: Path, missing: str, message: str) -> None:
    rows = {"recipe_row": True, "objective_row": True} | {missing: False}
    ended = use(house_with(tmp_path, **rows))
    assert ended.returncode == 1
    assert message in ended.stderr


def test_every_recipe_has_its_row() -> None:
    assert set(OBJECTIVES) == set(OBJECTIVE_RECIPES)
