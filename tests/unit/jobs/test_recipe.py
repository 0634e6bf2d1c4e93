"""The chain's recipe: what ships is valid, paths and options win over it, and mistakes are told all at once."""

from __future__ import annotations

import importlib.resources
import textwrap
from pathlib import Path

import pytest

from jobs.base.recipe import ChainRecipe, load_chain, require, resolve_recipe
from pipeline.base.errors import InputError, RecipeError

SHIPPED = sorted(Path(str(importlib.resources.files("jobs") / "recipes")).glob("*.yaml"))


def written(folder: Path, text: str) -> str:
    """A recipe file with *text*."""
    path = folder / "r.yaml"
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid(path: Path) -> None:
    chain = load_chain(str(path), [], {"workspace": "/w"})
    assert chain == load_chain(path.stem, [], {"workspace": "/w"})
    assert chain.shard or chain.pretrain or chain.evaluate
    if chain.pretrain and chain.shard:
        assert chain.pretrain.dataset in {stage.name for stage in chain.shard}
    if chain.evaluate and chain.shard:
        used = {name for task in chain.evaluate.tasks.values() for name in (task.train, task.test)}
        assert used <= {stage.name for stage in chain.shard}


def test_tiny_holds_the_whole_chain() -> None:
    chain = load_chain("tiny", [])
    assert chain.shard[0].source == "embedded://fashion-mnist/train"
    assert chain.pretrain is not None
    assert chain.evaluate is not None
    assert {entry.evaluator for entry in chain.evaluate.suite} == {
        "linear",
        "knn",
        "fewshot",
        "classify",
        "finetune",
        "inspect",
    }


def test_overrides_and_options_win(tmp_path: Path) -> None:
    overrides = ["pretrain.steps=5", "pretrain.schedule.warmup_steps=0", "shard.1.max_samples=7"]
    chain = load_chain("tiny", overrides, {"workspace": str(tmp_path)})
    assert chain.pretrain is not None
    assert (chain.pretrain.steps, chain.shard[1].max_samples) == (5, 7)
    assert chain.workspace == tmp_path.as_uri()


def test_the_workspace_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_chain(written(tmp_path, "workspace: some/where\n"), []).workspace == f"{tmp_path.as_uri()}/some/where"
    with pytest.raises(InputError, match="gs"):
        load_chain(written(tmp_path, "workspace: gs://bucket/x\n"), [])


def test_a_file_goes_before_a_shipped_recipe_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve_recipe("tiny") == next(path for path in SHIPPED if path.stem == "tiny")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("workspace: mine\n")
    assert load_chain("tiny", []).shard == ()


BASE = """
workspace: w
pretrain:
  {run: a, dataset: d, steps: 10, model: {name: Ti/16}, schedule: {warmup_steps: 2},
   optimizer: {learning_rate: 0.1, beta1: 0.8}}
"""


def extended(folder: Path, text: str) -> ChainRecipe:
    (folder / "bases").mkdir(exist_ok=True)
    (folder / "bases" / "base.yaml").write_text(BASE)
    (folder / "middle.yaml").write_text("extends: bases/base\npretrain: {steps: 20, stream: {batch_size: 8}}\n")
    return load_chain(written(folder, text), [])


def test_a_recipe_that_extends_another_says_only_what_it_changes(tmp_path: Path) -> None:
    changes = "pretrain: {run: b, optimizer: {learning_rate: 0.2, beta1: null}}\n"
    made = extended(tmp_path, f"extends: middle.yaml\n{changes}")
    whole = BASE.replace("run: a", "run: b, stream: {batch_size: 8}").replace("steps: 10", "steps: 20")
    whole = whole.replace("0.1, beta1: 0.8", "0.2")
    assert made == load_chain(written(tmp_path, whole), [])


def test_a_shipped_recipe_can_be_extended(tmp_path: Path) -> None:
    made = load_chain(written(tmp_path, "extends: vit_b16_i1k\npretrain: {run: mine}\n"), ["pretrain.steps=70000"])
    assert made.pretrain is not None
    assert (made.pretrain.run, made.pretrain.steps, made.pretrain.optimizer.weight_decay) == ("mine", 70_000, 0.3)


def test_a_copy_of_a_shipped_recipe_finds_its_base(tmp_path: Path) -> None:
    shipped = next(path for path in SHIPPED if path.stem == "vit_l16_jft")
    copied = tmp_path / "mine.yaml"
    copied.write_text(shipped.read_text())
    assert load_chain(str(copied), ["workspace=w"]) == load_chain("vit_l16_jft", ["workspace=w"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("extends: nowhere\n", "nowhere: there is no such file"),
        ("extends: [middle]\n", "extends: give the name of one recipe"),
        ("extends: r\n", "extends: r extends itself"),
        ("extends: middle\npretrain: {optimizer: {beta3: 1}}\n", "beta3"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        extended(tmp_path, text)


def test_a_missing_file_names_what_ships() -> None:
    with pytest.raises(RecipeError, match=r"huge: there is no such file; recipes that ship with vitpipe: .*tiny"):
        load_chain("huge", [])


def test_a_section_that_a_command_needs() -> None:
    chain = ChainRecipe(workspace="w")
    with pytest.raises(RecipeError, match=r"r.yaml: section 'pretrain' is missing"):
        require(chain.pretrain, "pretrain", "r.yaml")
    with pytest.raises(RecipeError, match="section 'shard' is missing"):
        require(chain.shard, "shard", "r.yaml")
    assert require("something", "pretrain", "r.yaml") == "something"


def test_two_datasets_of_one_name_are_refused(tmp_path: Path) -> None:
    text = "workspace: w\nshard: [{name: a, source: x}, {name: a, source: y}]\n"
    with pytest.raises(RecipeError, match="two datasets of shard have the same name"):
        load_chain(written(tmp_path, text), [])


def test_all_mistakes_of_all_sections_at_once(tmp_path: Path) -> None:
    text = """
        workspace: w
        shrad: []
        shard: [{name: a b, source: x, max_sampels: 3}]
        pretrain: {run: r, dataset: d, steps: -1, model: {name: S/16}, workers: .nan}
        evaluate: {tasks: {t: {train: a, test: a}}, suite: [{evaluator: linaer, tasks: [t]}]}
        """
    with pytest.raises(RecipeError) as caught:
        load_chain(written(tmp_path, text), [])
    said = caught.value.problems
    for part in (
        "unknown key 'shrad' - did you mean 'shard'?",
        "unknown key 'shard.0.max_sampels' - did you mean 'max_samples'?",
        "'shard.0.name'",
        "'pretrain.steps'",
        "'pretrain.workers'",
        "train and test are the same dataset 'a'",
        "'evaluate.suite.0.evaluator'",
    ):
        assert sum(part in problem for problem in said) == 1, part
    assert len(said) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping"),
        ("- 1\n", "expected a mapping"),
        ("workspace: [\n", "not valid YAML"),
        ("workspace: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("workspace: &a x\nshard: *a\n", "aliases"),
        ("workspace: a\nworkspace: b\n", "given twice: workspace"),
        ("workspace: 7\n", "'workspace'"),
        ("shard: []\n", "'workspace' is required"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        load_chain(written(tmp_path, text), [])
    assert str(tmp_path / "r.yaml") in str(caught.value)
