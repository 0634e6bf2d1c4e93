"""What ``vitpipe evaluate`` is asked for: a run or weights, and the suite to judge them on, from wherever it comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.recipe import ChainRecipe, load_chain, require, resolve_recipe
from jobs.suite import ReadRecipe, find_suite, only_suite
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.progress import Silent
from pipeline.base.store import Store, Stores
from pipeline.evaluate.scheduler.planning import Planner, WeightsPlanner, planner_of
from pipeline.evaluate.scheduler.suites import kept_suites
from pipeline.evaluate.suite import EvaluateRecipe

if TYPE_CHECKING:
    from pipeline.evaluate.imported import Weights

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


@dataclass(frozen=True)
class Asked:
    """A run, and the suite that it is to be judged on; *every_seconds*: look again so often, until it is complete.

    *weights*: not a run, but these; *run* is their name then.
    """

    run: str
    suite: str
    read_recipe: ReadRecipe
    every_seconds: float | None = None
    weights: Weights | None = None

    def planner(self, workspace: Store) -> Planner:
        """Tells what there is to judge. Raises InputError when there is no such run."""
        if self.weights is not None:
            return WeightsPlanner(workspace, self.weights.card, is_kept=False)
        return planner_of(workspace, self.run, Silent())

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
    """A run or weights that were imported before, and the suite that is named; named none: the one it had before.

    Raises InputError when there is nothing of that name, or no suite.
    """
    if given.train and given.test:
        default_suite(given.train, given.test)  # what cannot be meant is told before what is not there
    planner_of(workspace, given.run_or_recipe, Silent())
    return _judged_on(given, workspace)


def of_weights(given: Given, workspace: Store, uri: str, name: str, stores: Stores) -> Asked:
    """The weights at *uri*, under *name*, and the suite that is named. Stores nothing. Raises as ``read_weights``."""
    # Imported here: it brings torch along, which all others do without until they are checked.
    from pipeline.evaluate.imported import read_weights  # noqa: PLC0415

    weights = read_weights(workspace, uri, name, stores)
    asked = _judged_on(replace(given, run_or_recipe=weights.card.name), workspace)
    return replace(asked, weights=weights)


def _judged_on(given: Given, workspace: Store) -> Asked:
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
