"""Every suite that ships: it is found by its name, can be planned, and its numbers are those of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import jobs
from jobs.base.evaluation_request import find_suite, load_suite, shipped_suites
from pipeline.base.errors import RecipeError
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import PlannedEvaluation, plan_evaluations
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.evaluate.worker import feature_jobs
from pipeline.report.tables import published_for

FOLDER = Path(jobs.__file__).parent / "recipes" / "suites"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TRANSFORM = {"size": 224, "resize": 256, "mode": "short", "filter": "bicubic"}
CHECKPOINTS = [ModelRef(f"weights-{step}", f"key-{step}", TRANSFORM, step) for step in (0, 100, 200)]
SMALL = [0.001, 0.003, 0.01, 0.03]
# ViT Table 4: steps, learning rates; and the share held out to choose on
TABLE_4 = {
    "imagenet": (20_000, [0.003, 0.01, 0.03, 0.06], 0.01),
    "cifar10": (10_000, SMALL, 0.02),
    "cifar100": (10_000, SMALL, 0.02),
    "pets": (500, SMALL, 0.1),
    "flowers": (500, SMALL, 0.1),
}


def suite(name: str, *overrides: str) -> EvaluateRecipe:
    """The one that ships under this name."""
    return find_suite(name, {}, list(overrides))[1]()


def planned(name: str, *overrides: str) -> list[PlannedEvaluation]:
    """What it asks for on made-up checkpoints and datasets."""
    recipe = suite(name, *overrides)
    datasets = {name for task in recipe.tasks.values() for name in (task.train, task.test)}
    return plan_evaluations(CHECKPOINTS, recipe, {name: f"digest of {name}" for name in datasets})


def asked(name: str, evaluator: str) -> list[dict[str, Any]]:
    """The settings of its evaluations of the last checkpoint by this evaluator, in their order."""
    return [
        item.key.settings | {"task": item.key.task, "seed": item.key.seed}
        for item in planned(name)
        if item.key.evaluator == evaluator and item.model_ref.step == 200
    ]


def test_these_ship_and_are_found_by_name() -> None:
    assert shipped_suites() == NAMES == ["dinov2", "fewshot", "layers", "probes", "vit_table4", "vtab1k"]
    with pytest.raises(
        RecipeError, match="no such suite; there are: dinov2, fewshot, layers, mine, probes, vit_table4"
    ):
        find_suite("prob", {"mine": suite("probes")}, [])


def test_what_a_run_had_under_the_name_goes_first() -> None:
    had = suite("probes", "tasks.target.train=digits-train")
    assert find_suite("probes", {"probes": had}, [])[1]() == had
    assert find_suite("layers", {"probes": had}, [])[1]() == suite("layers")


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_planned_and_names_tell_evaluations_apart(name: str) -> None:
    items = planned(name)
    assert items
    assert len({item.id for item in items}) == len({item.name for item in items}) == len(items)
    assert {item.model_ref.step for item in items} >= {200}
    assert set(suite(name).tasks) == {item.key.task for item in items}
    feature_jobs(items)


@pytest.mark.parametrize("name", NAMES)
def test_the_comment_names_the_datasets(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    comment = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    for task_name, task in suite(name).tasks.items():
        for dataset, part in ((task.train, "train"), (task.test, "test")):
            assert dataset in comment or (dataset == f"{task_name}-{part}" and f"TASK-{part}" in comment)
    assert load_suite(FOLDER / f"{name}.yaml", []) == suite(name)


def test_datasets_may_be_named_on_the_command_line() -> None:
    recipe = suite("probes", "tasks.target.train=digits-train", "tasks.target.test=digits-test")
    assert (recipe.tasks["target"].train, recipe.tasks["target"].test) == ("digits-train", "digits-test")


def test_fine_tuning_is_that_of_table_4() -> None:
    by_task = {settings["task"]: settings for settings in asked("vit_table4", "finetune")}
    assert by_task.keys() == TABLE_4.keys()
    for task, (steps, rates, held_out) in TABLE_4.items():
        found = by_task[task]
        assert (found["steps"], found["learning_rates"], found["validation"]) == (steps, rates, held_out)
        assert (found["batch_size"], found["image_size"], found["runs"]) == (512, 384, 3)
        assert (found["optimizer"], found["weight_decay"], found["ema"], found["layer_decay"]) == ("sgd", 0, 0, 1)
        assert (found["augment"]["crop"], found["augment"]["area_min"], found["augment"]["flip"]) == (
            "resized",
            0.05,
            True,
        )
    assert {item.model_ref.step for item in planned("vit_table4")} == {200}


def test_vtab_is_800_and_200_and_2500_steps() -> None:
    settings = asked("vtab1k", "finetune")
    assert len(settings) == 19
    for found in settings:
        assert (found["split"], found["steps"], found["learning_rates"]) == ("vtab", 2500, [0.01])
        assert (found["batch_size"], found["image_size"], found["augment"]) == (512, 384, None)
        assert found["allow_missing_classes"] == (found["task"] == "sun397"), "397 classes, 800 samples"
        assert "validation" not in found


@pytest.mark.parametrize(("name", "shots"), [("fewshot", [1, 5, 10, 25]), ("probes", [5, 10])])
def test_few_shot_is_that_of_big_vision(name: str, shots: list[int]) -> None:
    found = asked(name, "fewshot")
    assert [(one["shots"], one["seed"]) for one in found] == [(number, seed) for number in shots for seed in range(3)]
    assert {one["l2"] for one in found} == {1024.0}
    for item in planned(name):
        if item.key.evaluator == "fewshot" and not item.model_ref.is_pixels:
            assert item.key.transform == {"size": 224, "resize": 256, "mode": "square", "filter": "bilinear"}


def test_probes_sweep_the_penalties_of_simclr() -> None:
    (found,) = asked("probes", "linear")
    assert (len(found["l2"]), found["l2"][0], found["l2"][-1]) == (45, pytest.approx(1e-6), pytest.approx(1e5))
    assert [one["k"] for one in asked("probes", "knn")] == [[10, 20, 100, 200]]


def test_probes_see_images_as_simclr_does() -> None:
    seen = {item.key.evaluator: item.key.transform for item in planned("probes") if item.model_ref.step == 200}
    assert seen["linear"] == {"size": 224, "resize": 224, "mode": "short", "filter": "bicubic"}
    assert seen["knn"] == TRANSFORM


def test_probes_of_the_demo_share_their_features() -> None:
    recipe = load_suite(FOLDER.parent / "tiny.yaml", [])
    own = {"size": 28, "resize": 28, "mode": "square", "filter": "bicubic"}
    digests = {name: name for task in recipe.tasks.values() for name in (task.train, task.test)}
    items = plan_evaluations([ModelRef("w", "k", own, 100)], recipe, digests)
    assert {item.key.evaluator for item in items} >= {"linear", "knn", "fewshot"}
    assert all(item.key.transform == own for item in items)


def test_the_baseline_of_raw_pixels_is_one_that_fits() -> None:
    for name in ("probes", "fewshot", "dinov2"):
        pixels = [item.model_ref.transform["size"] for item in planned(name) if item.model_ref.is_pixels]
        assert pixels
        assert set(pixels) == {32}


def test_dinov2_is_on_the_task_that_published_values_stand_beside() -> None:
    (task,) = suite("dinov2").tasks
    assert published_for(task, [50_000])


def test_layers_are_the_last_twelve_each_alone() -> None:
    for evaluator in ("linear", "knn"):
        assert [one["layers"] for one in asked("layers", evaluator)] == [[layer] for layer in range(-12, 0)]
    assert "linear on target of step 200 (layer -12)" in {item.name for item in planned("layers")}
    assert all(item.key.transform == TRANSFORM for item in planned("layers")), "one forward pass for all"


def test_dinov2_has_52_heads_and_its_k() -> None:
    (found,) = asked("dinov2", "sgd")
    assert (found["blocks"], found["steps"], found["batch_size"], len(found["learning_rates"])) == (4, 12_500, 1024, 13)
    (knn,) = asked("dinov2", "knn")
    assert (knn["k"], knn["temperature"]) == ([10, 20, 100, 200], 0.07)


def test_a_suite_may_extend_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nevaluate: {max_parallel: 7}\n")
    recipe = load_suite(path, [])
    assert recipe == load_suite(FOLDER.parent / "tiny.yaml", ["max_parallel=7"])
