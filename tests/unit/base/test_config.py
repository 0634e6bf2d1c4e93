"""Recipes are refused with every problem at once, each in words that name the way out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from pipeline.base.config import MAX_RECIPE_BYTES, Config, apply_overrides, build, load, parse_yaml, read_yaml
from pipeline.base.errors import RecipeError


class Adam(Config):
    """One member of a union."""

    kind: Literal["adam"] = "adam"
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)


class Momentum(Config):
    """The other member."""

    kind: Literal["momentum"] = "momentum"
    learning_rate: float
    momentum: float = 0.9


class Entry(Config):
    """An item of a list or mapping."""

    task: str
    seeds: list[int] = [0]


class Recipe(Config):
    """One of everything."""

    optimizer: Annotated[Adam | Momentum, Field(discriminator="kind")] = Adam(learning_rate=1e-3)
    either: Adam | Momentum | None = None
    suite: list[Entry] = []
    stores: dict[str, Entry] = {}
    epochs: int = 1
    name: str = "x"


def problems_of(text: str) -> list[str]:
    """What is said about the recipe *text*, without the name of its source."""
    with pytest.raises(RecipeError) as caught:
        build(Recipe, parse_yaml(text, "recipe"))
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_a_recipe_is_built_whole() -> None:
    text = "optimizer: {kind: momentum, learning_rate: 1e-3}\nsuite: [{task: a}]\nepochs: 3"
    recipe = build(Recipe, parse_yaml(text, "recipe"))
    assert recipe.optimizer == Momentum(learning_rate=0.001)
    assert recipe.suite == [Entry(task="a")]
    assert recipe.epochs == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 2", "unknown key 'epoch' - did you mean 'epochs'?"),
        ("suite: [{task: a}, {task: b, seed: [1]}]", "unknown key 'suite.1.seed' - did you mean 'seeds'?"),
        ("stores: {bucket: {task: a, sedes: [1]}}", "unknown key 'stores.bucket.sedes' - did you mean 'seeds'?"),
        ("stores: {task: {task: a, qqq: 1}}", "unknown key 'stores.task.qqq' - known keys: seeds, task"),
        (
            "optimizer: {kind: momentum, learning_rate: 1, momentun: 2}",
            "unknown key 'optimizer.momentun' - did you mean 'momentum'?",
        ),
        (
            "optimizer: {kind: adam, learning_rate: 1, zzz: 2}",
            "unknown key 'optimizer.zzz' - known keys: betas, kind, learning_rate",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, expected: str) -> None:
    assert problems_of(text) == [expected]


def test_every_problem_is_named_at_once() -> None:
    text = "epoch: 2\nepochs: many\nsuite: [{tsk: a}]\noptimizer: {kind: adam, learning_rate: .nan}"
    problems = problems_of(text)
    assert len(problems) == 5
    for expected in (
        "unknown key 'epoch' - did you mean 'epochs'?",
        "'epochs': Input should be a valid integer, unable to parse string as an integer (got 'many')",
        "'suite.0.task' is required",
        "unknown key 'suite.0.tsk' - did you mean 'task'?",
        "'optimizer.learning_rate': Input should be a finite number (got nan)",
    ):
        assert expected in problems


def test_members_of_a_union_do_not_repeat_each_other() -> None:
    problems = problems_of("either: {learning_rate: .inf}")
    assert problems == ["'either.learning_rate': Input should be a finite number (got inf)"]


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(number: str) -> None:
    assert "finite" in problems_of(f"optimizer: {{kind: adam, learning_rate: {number}}}")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("a: &name 1\nb: *name", "aliases"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("a: !!python/object/apply:os.system [true]", "tag"),
        ("a: !custom 1", "tag"),
        ("epochs: 1\nepochs: 2", "given twice: epochs"),
        ("suite: [{task: a, task: b}]", "given twice: task"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: " + "1" * 5000, "digits"),
        ("[" * 20_000, "nested too deeply"),
        ("- a\n- b", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: '\x07'", "not valid YAML"),
    ],
)
def test_broken_or_hostile_yaml_is_refused(text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "recipe.yaml")
    assert str(caught.value).startswith("recipe.yaml: ")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_huge_file_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="this is not a recipe"):
        parse_yaml("#" * (MAX_RECIPE_BYTES + 1), "recipe.yaml")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(tmp_path)


def test_overrides_reach_every_place_and_leave_the_original() -> None:
    tree = {"a": {"b": 1}, "items": [{"x": 1}, {"x": 2}], "plain": [1, 2]}
    result = apply_overrides(
        tree, ["a.b=2", "a.new.deep=true", "items.1.x=1e-3", "plain.0=[3, 4]", "top=text=with=signs", "none="]
    )
    assert result == {
        "a": {"b": 2, "new": {"deep": True}},
        "items": [{"x": 1}, {"x": "1e-3"}],  # as in a file: YAML 1.1 wants 1.0e-3; the model makes it a number
        "plain": [[3, 4], 2],
        "top": "text=with=signs",
        "none": None,
    }
    assert tree == {"a": {"b": 1}, "items": [{"x": 1}, {"x": 2}], "plain": [1, 2]}


def test_every_bad_override_is_named() -> None:
    bad = ["novalue", "=1", "items.7.x=1", "items.x=1", "scalar.x.y=1", "scalar.x=1", "a=[1", "a=*x", "items.²=1"]
    with pytest.raises(RecipeError) as caught:
        apply_overrides({"items": [{"x": 1}], "scalar": 3}, [*bad, "good=1"])
    assert len(caught.value.problems) == len(bad)
    for override, problem in zip(bad, caught.value.problems, strict=True):
        assert repr(override) in problem


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("suite: [{task: a}]\n", encoding="utf-8")
    assert load(Recipe, path, ["epochs=4", "suite.0.seeds=[1, 2]"]).suite[0].seeds == [1, 2]
    with pytest.raises(RecipeError, match=r"recipe\.yaml: unknown key 'epoch' - did you mean 'epochs'\?"):
        load(Recipe, path, ["epoch=4"])


def test_a_recipe_does_not_change() -> None:
    recipe = Recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 2  # type: ignore[misc]
    assert math.isclose(recipe.optimizer.learning_rate, 1e-3)
