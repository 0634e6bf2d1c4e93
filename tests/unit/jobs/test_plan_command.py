"""``vitpipe plan``: numbers that can be worked out by hand, what it assumes, what it refuses; as tables and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.base.recipe import load_chain
from jobs.cli import main
from pipeline.base.errors import RecipeError
from pipeline.base.store import open_store
from pipeline.models.config import config_by_name
from pipeline.models.cost import activation_bytes_per_image, count_parameters, training_flops_per_image
from pipeline.pretrain.estimate import Assumed, plan
from pipeline.train.deepspeed_config import model_state_bytes
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe
from tests.support.datasets import make_dataset

RECIPE = """
workspace: ws
pretrain:
  run: some
  dataset: pictures
  steps: 1000
  model: {name: B/16}
  stream: {batch_size: 512, partitions: 8}
  schedule: {warmup_steps: 100}
  engine: {zero_stage: 2, micro_batch_size: 32}
  workers: {min: 2, max: 4}
  checkpoint_every: 300
  keep_last: 2
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe beside an empty workspace."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.yaml"
    path.write_text(RECIPE)
    return path


def _plan(recipe: Path, assumed: Assumed = Assumed(), *overrides: str) -> dict:  # noqa: B008 - it is frozen
    chain = load_chain(str(recipe), list(overrides))
    assert chain.pretrain is not None
    return plan(open_store(chain.workspace, chain.stores), chain.pretrain, assumed)


def test_steps_samples_epochs_and_tokens(recipe: Path) -> None:
    training = _plan(recipe, Assumed(images=51_200, classes=1000))["training"]
    assert training["samples"] == 512_000
    assert training["epochs"] == 10.0
    assert training["tokens"] == 512_000 * 197
    assert training["warmup_share"] == 0.1


def test_flops_and_time(recipe: Path) -> None:
    compute = _plan(recipe, Assumed(51_200, 1000, mfu=0.5, peak_tflops=100))["compute"]
    an_image = training_flops_per_image(config_by_name("B/16", num_classes=1000))
    assert compute["flops_per_image_training"] == an_image
    assert compute["flops_total"] == an_image * 512_000
    assert compute["total_seconds"] == pytest.approx(an_image * 512_000 / (4 * 50e12))
    assert compute["rank_hours"] == pytest.approx(4 * compute["total_seconds"] / 3600)
    assert compute["images_per_second"] == pytest.approx(512_000 / compute["total_seconds"])


def test_the_recipes_own_peak_is_taken(recipe: Path) -> None:
    found = _plan(recipe, Assumed(51_200, 1000), "pretrain.resources.peak_flops=989e12")
    assert found["compute"]["peak_tflops"] == 989


def test_batches_of_each_world_size(recipe: Path) -> None:
    worlds = _plan(recipe, Assumed(51_200, 1000))["batch"]["worlds"]
    assert [row["world_size"] for row in worlds] == [1, 2, 4, 8]
    assert [row["in_recipe"] for row in worlds] == [False, True, True, False]
    assert all(row["micro_batch_size"] * row["accumulation"] * row["world_size"] == 512 for row in worlds)


def test_memory_by_stage(recipe: Path) -> None:
    """Adam in bf16: 12 bytes of float32 state for each parameter, divided by the ranks from stage 1 on."""
    config = config_by_name("B/16", num_classes=1000)
    n = count_parameters(config)
    rows = _plan(recipe, Assumed(51_200, 1000))["memory"]
    assert [(row["world_size"], row["zero_stage"]) for row in rows] == [(w, s) for w in (2, 4) for s in range(4)]
    assert [row["zero_stage"] for row in rows if row["in_recipe"]] == [2, 2]
    for row in rows:
        assert row["activation_bytes"] == 32 * activation_bytes_per_image(config, 2)
        assert row["activation_bytes_checkpointed"] < row["activation_bytes"] / 5
        assert row["optimizer_bytes"] == pytest.approx(12 * n / (row["world_size"] if row["zero_stage"] else 1))
        assert row["bytes"] == row["state_bytes"] + row["activation_bytes"]
    engine = EngineRecipe(zero_stage=1, micro_batch_size=32)
    expected = model_state_bytes(n, engine, OptimizerRecipe(), 4, accumulation_steps=4)
    assert rows[5]["state_bytes"] == sum(expected.values())
    assert rows[4]["state_bytes"] > rows[5]["state_bytes"] > rows[6]["state_bytes"]


def test_checkpointed_blocks_are_counted_as_such(recipe: Path) -> None:
    row = _plan(recipe, Assumed(51_200, 1000), "pretrain.checkpoint_blocks=true")["memory"][0]
    assert row["bytes"] == row["state_bytes"] + row["activation_bytes_checkpointed"]


def test_a_stage_that_cannot_be_is_left_out(recipe: Path) -> None:
    rows = _plan(recipe, Assumed(51_200, 1000), "pretrain.engine.precision=fp16")["memory"]
    assert {row["zero_stage"] for row in rows} == {1, 2, 3}


def test_a_moving_average_costs_memory_and_a_file(recipe: Path) -> None:
    plain = _plan(recipe, Assumed(51_200, 1000))
    averaged = _plan(recipe, Assumed(51_200, 1000), "pretrain.optimizer.ema=0.9999")
    n = plain["model"]["parameters"]
    assert averaged["memory"][0]["ema_bytes"] == pytest.approx(4 * n / 2, rel=1e-3)
    assert plain["memory"][0]["ema_bytes"] == 0
    assert averaged["checkpoints"]["bytes"] - plain["checkpoints"]["bytes"] == 8 * n


def test_checkpoints(recipe: Path) -> None:
    found = _plan(recipe, Assumed(51_200, 1000))
    n, checkpoints = found["model"]["parameters"], found["checkpoints"]
    assert n == count_parameters(config_by_name("B/16", num_classes=1000)) == 86_567_656
    assert checkpoints["fragments_bytes"] == 12 * n
    assert checkpoints["bytes"] == 16 * n
    assert checkpoints["written"] == 5  # 0, 300, 600, 900, 1000
    assert checkpoints["kept"] == 3  # 0 and the last two


def test_masked_patches_have_a_decoder_and_no_classes(recipe: Path) -> None:
    found = _plan(recipe, Assumed(51_200), "pretrain.objective=masked_patches")
    bare = config_by_name("B/16")
    assert found["model"]["parameters"] == count_parameters(bare) + 768 + 768 * 512 + 512
    assert found["compute"]["flops_by_part_forward"]["objective"] == 2 * 98 * 768 * 512


def test_the_card_is_read_where_it_is_there(recipe: Path, tmp_path: Path) -> None:
    make_dataset(open_store(str(tmp_path / "ws")), "pictures", num_samples=64)
    found = _plan(recipe)
    assert found["assumed"] == []
    assert found["training"]["epochs"] == 512_000 / 64
    assert found["model"]["classes"] == 4
    given = _plan(recipe, Assumed(images=128))
    assert given["training"]["epochs"] == 512_000 / 128
    assert given["assumed"] == ["128 images"]


def test_what_is_not_there_is_assumed_and_said(recipe: Path) -> None:
    found = _plan(recipe)
    assert found["model"]["classes"] == 1000
    assert found["training"]["epochs"] is None
    told = "\n".join(found["assumed"])
    for words in ("no dataset 'pictures'", "--images N", "--classes K"):
        assert words in told
    assert not (recipe.parent / "ws").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.workers=3", "world sizes that work: 1, 2, 4, 8"),
        ("pretrain.engine.micro_batch_size=7", "micro_batch_size 7 does not divide"),
        ("pretrain.engine={zero_stage: 0, precision: fp16}", "fp16 needs zero_stage"),
    ],
)
def test_what_training_would_refuse_is_refused(recipe: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        _plan(recipe, Assumed(51_200, 1000), "pretrain.workers=2", override)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def vitpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vitpipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


def test_as_json(recipe: Path, vitpipe: Callable[..., Said]) -> None:
    said = vitpipe("plan", recipe, "--images", 51_200, "--classes", 10, "--mfu", 0.3, "--peak-tflops", 100, "--json")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert found["training"]["epochs"] == 10
    assert (found["compute"]["mfu"], found["compute"]["peak_tflops"]) == (0.3, 100)


def test_as_tables(recipe: Path, vitpipe: Callable[..., Said]) -> None:
    said = vitpipe("plan", recipe, "--images", 51_200, "--classes", 1000)
    assert said.code == 0
    for words in ("86,567,656", "10 of 51,200 images", "32 x 4 x 4 = 512", "197", "2*", "model.safetensors", "346 MB"):
        assert words in said.out


def test_a_recipe_that_ships(vitpipe: Callable[..., Said]) -> None:
    said = vitpipe("plan", "vit_h14_jft", "--images", 303_000_000, "--classes", 18_291)
    assert said.code == 0
    assert "14 of 303,000,000 images" in said.out


def test_a_recipe_without_pretraining_is_refused(tmp_path: Path, vitpipe: Callable[..., Said]) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("workspace: ws\n")
    said = vitpipe("plan", path)
    assert said.code == 2
    assert "section 'pretrain' is missing" in said.err
