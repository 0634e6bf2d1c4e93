"""What ``vitpipe evaluate`` is asked for: a run, and the suite that it is to be judged on, from wherever it comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jobs.recipe import ChainRecipe, load_chain, require, resolve_recipe
from jobs.suite import ReadRecipe, find_suite, only_suite
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store import Store
from pipeline.evaluate.suite import EvaluateRecipe

RECIPE_SUITE = "recipe"  # the name of the suite that a recipe of the chain holds
TASK_SUITE = "task"  # of the one that --train and --test stand for


@dataclass(frozen=True)
class Given:
    """What stood on the command line."""

    run_or_recipe: str
    suite: str | None = None
    train: str | None = None
    test: str | None = None
    overrides: tuple[str, ...] = ()

    def is_recipe(self, workspace: str | None) -> bool:
        """True when the first argument is a recipe of the chain, which names run and suite; else it is a run."""
        if bool(self.train) != bool(self.test):
            raise InputError("a task needs both --train and --test")
        if self.train and self.suite:
            raise InputError("--suite and --train name two suites", "leave one out")
        if self.train or self.suite:
            return False
        try:
            resolve_recipe(self.run_or_recipe)
        except RecipeError:
            return not workspace or self.run_or_recipe.endswith((".yaml", ".yml"))
        return True


@dataclass(frozen=True)
class Asked:
    """A run, and the suite that it is to be judged on; *every_seconds*: look again so often, until it is complete."""

    run: str
    suite: str
    read_recipe: ReadRecipe
    every_seconds: float | None = None

    def with_options(self, max_parallel: int | None, priority: list[str] | None, every_seconds: float | None) -> Asked:
        """The same, with what the command line says about how it is run."""
        given: dict[str, Any] = {"max_parallel": max_parallel} if max_parallel else {}
        given |= {"priority": tuple(priority)} if priority else {}
        read = self.read_recipe
        return replace(self, read_recipe=lambda: read().model_copy(update=given), every_seconds=every_seconds)


def from_recipe(given: Given, changes: dict[str, Any]) -> tuple[ChainRecipe, Asked]:
    """Run and suite of a recipe of the chain."""
    chain = load_chain(given.run_or_recipe, list(given.overrides), changes)
    run = require(chain.pretrain, "pretrain", given.run_or_recipe).run
    recipe: EvaluateRecipe = require(chain.evaluate, "evaluate", given.run_or_recipe)
    return chain, Asked(run, RECIPE_SUITE, lambda: recipe)


def of_run(given: Given, workspace: Store) -> Asked:
    """A run, and the suite that is named; named none: the one it had before."""
    # Imported here: it brings torch along, which recipes do without until they are checked.
    from pipeline.evaluate.scheduler.suites import kept_suites  # noqa: PLC0415

    run, overrides = given.run_or_recipe, list(given.overrides)
    if given.train and given.test:
        tree = apply_overrides(default_suite(given.train, given.test).model_dump(mode="json"), overrides)
        recipe = build(EvaluateRecipe, tree, "evaluate")
        return Asked(run, TASK_SUITE, lambda: recipe)
    kept = kept_suites(workspace, run)
    if given.suite:
        return Asked(run, *find_suite(given.suite, kept, overrides))
    return Asked(run, *only_suite(workspace, run, kept, overrides))


def default_suite(train: str, test: str) -> EvaluateRecipe:
    """The probes on one task, for an evaluation without a recipe."""
    suite = [{"evaluator": name, "tasks": ["task"]} for name in ("linear", "knn", "fewshot")]
    return build(EvaluateRecipe, {"tasks": {"task": {"train": train, "test": test}}, "suite": suite}, "evaluate")
