"""Every recipe that ships: it parses, its plan works, batches divide at each world size it allows; and it says what the
tables of its source say.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
from jobs.base.recipe import ChainRecipe, load_chain
from pipeline.base.store import open_store
from pipeline.models.config import config_by_name
from pipeline.models.cost import count_parameters
from pipeline.pretrain.estimate import Assumed, plan
from pipeline.pretrain.recipe import PretrainRecipe

FOLDER = Path(jobs.__file__).parent / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LARGE = [name for name in NAMES if name.startswith(("vit_", "plain_", "augreg_"))]
IMAGES = {"jft": 303_000_000, "i21k": 14_197_122, "i1k": 1_281_167}
CLASSES = {"jft": 18_291, "i21k": 21_843, "i1k": 1_000}
SIZES = {"ti16": "Ti/16", "s16": "S/16", "b16": "B/16", "b32": "B/32", "l16": "L/16", "l32": "L/32", "h14": "H/14"}

# ViT (arXiv 2010.11929), Table 3: epochs, rate, decay, weight decay, dropout
TABLE_3 = {
    "vit_b16_jft": (7, 8e-4, "linear", 0.1, 0.0),
    "vit_b32_jft": (7, 8e-4, "linear", 0.1, 0.0),
    "vit_l32_jft": (7, 6e-4, "linear", 0.1, 0.0),
    "vit_l16_jft": (14, 4e-4, "linear", 0.1, 0.0),
    "vit_h14_jft": (14, 3e-4, "linear", 0.1, 0.0),
    **{f"vit_{size}_i21k": (90, 1e-3, "linear", 0.03, 0.1) for size in ("b16", "b32", "l16", "l32")},
    **{f"vit_{size}_i1k": (300, 3e-3, "cosine", 0.3, 0.1) for size in ("b16", "b32", "l16", "l32", "h14")},
}
# big_vision vit_i21k: RandAugment layers, magnitude; mixup
PRESETS = {"ti16": (0, 0, 0.0), "s16": (2, 0, 0.0), "b16": (2, 10, 0.2), "l16": (2, 15, 0.5), "h14": (2, 15, 0.5)}


def _of(name: str) -> tuple[ChainRecipe, PretrainRecipe]:
    chain = load_chain(name, [])
    assert chain.pretrain is not None
    return chain, chain.pretrain


def _parts(name: str) -> tuple[str, str, str]:
    """(family, size, data)."""
    family, size, data = name.split("_")
    return family, size, data


def test_there_is_a_recipe_for_each_row_of_the_tables() -> None:
    sizes = ("ti16", "s16", "b16", "l16", "h14")
    expected = {f"plain_{size}_i1k" for size in sizes} | {f"augreg_{size}_i21k" for size in sizes} | set(TABLE_3)
    assert set(LARGE) == expected


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_can_be_planned_and_its_batches_divide(name: str, tmp_path: Path) -> None:
    _, recipe = _of(name)
    _, size, data = _parts(name)
    found = plan(open_store(str(tmp_path)), recipe, Assumed(images=IMAGES[data], classes=CLASSES[data]))
    expected = config_by_name(SIZES[size])
    assert {key: getattr(recipe.model, key) for key in ("width", "depth", "mlp_width", "heads", "patch_size")} == {
        key: getattr(expected, key) for key in ("width", "depth", "mlp_width", "heads", "patch_size")
    }
    used = [row for row in found["batch"]["worlds"] if row["in_recipe"]]
    assert used
    for row in used:
        assert row["problem"] is None
        assert row["micro_batch_size"] * row["accumulation"] * row["world_size"] == recipe.stream.batch_size
    epochs = {"plain": 90, "augreg": 300}.get(name.split("_")[0]) or TABLE_3[name][0]
    assert found["training"]["epochs"] == pytest.approx(epochs, rel=1e-5)
    assert found["checkpoints"]["kept"] < found["checkpoints"]["written"]


@pytest.mark.parametrize("name", TABLE_3)
def test_the_papers_recipes_say_what_table_3_says(name: str) -> None:
    _, recipe = _of(name)
    _, rate, decay, weight_decay, dropout = TABLE_3[name]
    assert recipe.optimizer.learning_rate == rate
    assert recipe.optimizer.weight_decay == weight_decay
    assert (recipe.schedule.decay, recipe.schedule.warmup_steps) == (decay, 10_000)
    assert recipe.model.dropout == dropout
    assert recipe.model.pre_logits == recipe.model.width
    assert (recipe.model.pool, recipe.model.position) == ("cls", "learned")
    assert recipe.optimizer.clip == (1.0 if name.endswith("_i1k") else 0.0)
    is_many = not name.endswith("_i1k")
    assert (recipe.objective.name, recipe.model.head_bias) == (("sigmoid", -10.0) if is_many else ("softmax", 0.0))
    assert recipe.stream.batch_size == 4096
    assert recipe.stream.mixup == recipe.stream.augment.randaugment.layers == 0


@pytest.mark.parametrize("size", PRESETS)
def test_augreg_and_plain_say_what_big_vision_says(size: str) -> None:
    _, augreg = _of(f"augreg_{size}_i21k")
    drawn = augreg.stream.augment.randaugment
    layers, magnitude, mixup = PRESETS[size]
    assert (drawn.layers, augreg.stream.mixup) == (layers, mixup)
    assert not layers or drawn.magnitude == magnitude
    assert (augreg.objective.name, augreg.model.head_bias, augreg.model.pool) == ("sigmoid", -10.0, "gap")
    assert augreg.model.position_std == pytest.approx(augreg.model.width**-0.5, rel=2e-3)  # big_vision models/vit.py
    assert augreg.stream.batch_size == 4096
    _, plain = _of(f"plain_{size}_i1k")
    drawn = plain.stream.augment.randaugment
    assert (drawn.layers, drawn.magnitude, plain.stream.mixup) == (2, 10, 0.2)
    assert (plain.model.pool, plain.model.position, plain.model.pre_logits) == ("gap", "sincos2d", plain.model.width)
    assert (plain.objective.name, plain.stream.batch_size) == ("softmax", 1024)
    for recipe in (augreg, plain):
        optimizer, schedule = recipe.optimizer, recipe.schedule
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip) == (1e-3, 0.1, 1.0)
        assert (schedule.decay, schedule.warmup_steps) == ("cosine", 10_000)


@pytest.mark.parametrize("name", LARGE)
def test_the_header_gives_the_command_and_its_numbers(name: str) -> None:
    data = name.rpartition("_")[2]
    text = (FOLDER / f"{name}.yaml").read_text()
    assert f"vitpipe plan {name} --images {IMAGES[data]} --classes {CLASSES[data]}" in text


def test_the_recipe_of_the_accuracy_benchmark_keeps_its_bounds() -> None:
    chain = load_chain(str(Path(__file__).parents[2] / "bench" / "accuracy" / "recipe.yaml"), [])
    assert chain.pretrain is not None
    config = chain.pretrain.model.model_copy(update={"num_classes": 10})
    assert count_parameters(config) <= 1_500_000
    found = plan(open_store(chain.workspace, chain.stores), chain.pretrain, Assumed(images=60_000, classes=10))
    assert found["training"]["epochs"] == pytest.approx(20)
