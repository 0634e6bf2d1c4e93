"""What ``vitpipe evaluate`` is asked for: a run or weights, and the suite to judge them on, from wherever it comes."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.base.recipe import ChainRecipe, load_chain, require, resolve_recipe
from pipeline.base.config import apply_overrides, build, read_yaml
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.progress import Silent
from pipeline.base.store.protocol import Store, Stores
from pipeline.evaluate.discovery import EvaluationRequest, ReadRecipe, kept_suites, planner_of
from pipeline.evaluate.recipe import EvaluateRecipe


def find_suite(name: str, kept: dict[str, EvaluateRecipe], overrides: list[str]) -> tuple[str, ReadRecipe]:
    """The suite called *name*, and how to read it, any time: a file, else one of *kept*, else one that ships with
    vitpipe. So a run that was judged on ``probes`` with other datasets keeps them.
    """
    path = Path(name)
    if not path.is_file() and name in kept:
        recipe = _changed(kept[name], overrides)
        return name, lambda: recipe
    if not path.is_file():
        path = _shipped(name, kept)
    return path.stem, lambda: load_suite(path, overrides)


def only_suite(
    workspace: Store, run: str, kept: dict[str, EvaluateRecipe], overrides: list[str]
) -> tuple[str, ReadRecipe]:
    """The suite that *run* was judged on before. Raises InputError when there is none, or several."""
    if len(kept) == 1:
        return find_suite(next(iter(kept)), kept, overrides)
    if kept:
        raise InputError(f"run {run!r} has several suites", f"add --suite, one of: {', '.join(sorted(kept))}")
    raise InputError(
        f"run {run!r} in {workspace.uri} has not been evaluated yet", "add --suite FILE, or --train and --test"
    )


def load_suite(path: Path, overrides: list[str]) -> EvaluateRecipe:
    """The suite in a file: its own keys, or those below ``evaluate`` where the file is a recipe of the chain."""
    tree = read_yaml(path)
    inner = tree.get("evaluate", tree) if "suite" not in tree else tree
    return build(EvaluateRecipe, apply_overrides(inner, overrides), str(path))


def shipped_suites() -> list[str]:
    """Names of the suites that ship with vitpipe."""
    return sorted(item.stem for item in _folder().glob("*.yaml"))


def _shipped(name: str, kept: dict[str, EvaluateRecipe]) -> Path:
    """The file of the suite that ships under *name*. Raises RecipeError that lists what there is."""
    if name not in shipped_suites():
        known = ", ".join(sorted({*shipped_suites(), *kept}))
        raise RecipeError([f"there is no such file, and no such suite; there are: {known}"], name)
    return _folder() / f"{name}.yaml"


def _folder() -> Path:
    return Path(str(importlib.resources.files("jobs") / "recipes" / "suites"))


def _changed(recipe: EvaluateRecipe, overrides: list[str]) -> EvaluateRecipe:
    return build(EvaluateRecipe, apply_overrides(recipe.model_dump(mode="json"), overrides), "suite")


RECIPE_SUITE = "recipe"  # the name of the suite that a recipe of the chain holds
TASK_SUITE = "task"  # of the one that --train and --test stand for


@dataclass(frozen=True)
class EvaluateOptions:
    """What stood on the command line."""

    run_or_recipe: str
    suite: str | None = None
    train: str | None = None
    test: str | None = None
    overrides: tuple[str, ...] = ()

    def is_recipe(self, workspace: str | None) -> bool:
        """True when the first argument is a recipe of the chain, which names run and suite; else it is a run."""
        self.check()
        if self.train or self.suite:
            return False
        try:
            resolve_recipe(self.run_or_recipe)
        except RecipeError:
            return not workspace or self.run_or_recipe.endswith((".yaml", ".yml"))
        return True

    def check(self) -> None:
        """Raise InputError when half a task, or two suites are named."""
        if bool(self.train) != bool(self.test):
            raise InputError("a task needs both --train and --test")
        if self.train and self.suite:
            raise InputError("--suite and --train name two suites", "leave one out")


def from_recipe(given: EvaluateOptions, changes: dict[str, Any]) -> tuple[ChainRecipe, EvaluationRequest]:
    """Run and suite of a recipe of the chain."""
    chain = load_chain(given.run_or_recipe, list(given.overrides), changes)
    run = require(chain.pretrain, "pretrain", given.run_or_recipe).run
    recipe: EvaluateRecipe = require(chain.evaluate, "evaluate", given.run_or_recipe)
    return chain, EvaluationRequest(run, RECIPE_SUITE, lambda: recipe)


def of_run(given: EvaluateOptions, workspace: Store) -> EvaluationRequest:
    """A run or weights that were imported before, and the suite that is named; named none: the one it had before.

    Raises InputError when there is nothing of that name, or no suite.
    """
    if given.train and given.test:
        default_suite(given.train, given.test)  # what cannot be meant is told before what is not there
    planner_of(workspace, given.run_or_recipe, Silent())
    return _judged_on(given, workspace)


def of_weights(given: EvaluateOptions, workspace: Store, uri: str, name: str, stores: Stores) -> EvaluationRequest:
    """The weights at *uri*, under *name*, and the suite that is named. Stores nothing. Raises as ``read_weights``."""
    # Imported here: it brings torch along, which all others do without until they are checked.
    from pipeline.evaluate.imported_weights import read_weights

    weights = read_weights(workspace, uri, name, stores)
    asked = _judged_on(replace(given, run_or_recipe=weights.card.name), workspace)
    return replace(asked, weights=weights)


def _judged_on(given: EvaluateOptions, workspace: Store) -> EvaluationRequest:
    run, overrides = given.run_or_recipe, list(given.overrides)
    if given.train and given.test:
        tree = apply_overrides(default_suite(given.train, given.test).model_dump(mode="json"), overrides)
        recipe = build(EvaluateRecipe, tree, "evaluate")
        return EvaluationRequest(run, TASK_SUITE, lambda: recipe)
    kept = kept_suites(workspace, run)
    if given.suite:
        return EvaluationRequest(run, *find_suite(given.suite, kept, overrides))
    return EvaluationRequest(run, *only_suite(workspace, run, kept, overrides))


def default_suite(train: str, test: str) -> EvaluateRecipe:
    """The probes on one task, for an evaluation without a recipe."""
    suite = [{"evaluator": name, "tasks": ["task"]} for name in ("linear", "knn", "fewshot")]
    return build(EvaluateRecipe, {"tasks": {"task": {"train": train, "test": test}}, "suite": suite}, "evaluate")
