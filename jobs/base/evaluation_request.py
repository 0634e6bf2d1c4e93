"""From the command line to an evaluation request: which run or weights, on which suite, and from where that is read."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.base.options import recipe_changes, stores_of, workspace_recipe
from jobs.base.recipe import ChainRecipe, load_chain, read_recipe_file, require, resolve_recipe
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.progress import Silent
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store, Stores
from pipeline.evaluate.discovery import EvaluationRequest, ReadRecipe, make_planner, stored_suites
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.pretrain.recipe import NAME_PATTERN
from pipeline.records.evaluators import default_probes

_RECIPE_SUITE = "recipe"  # the name of the suite that a recipe of the chain holds
_TASK_SUITE = "task"  # of the one that --train and --test stand for


@dataclass(frozen=True)
class EvaluateOptions:
    """The command line: a run or a recipe, and its suite by name or as one task."""

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


def request_for_run(
    options: EvaluateOptions, name: str | None, workspace: str | None, endpoint: str | None
) -> tuple[ChainRecipe, EvaluationRequest]:
    """A run, or weights that were imported before, or a recipe that names run and suite.

    With ``-w``, as in ``report``, a run of that name wins over a recipe that ships with vitpipe.
    """
    if not options.run_or_recipe:
        raise InputError("what is to be evaluated?", "name a run, a recipe, or --weights")
    if name:
        raise InputError("--name is for --weights; a run has its own", "leave it out")
    is_recipe = options.is_recipe(workspace)
    if is_recipe and not (workspace and _exists(options.run_or_recipe, workspace, endpoint)):
        return from_recipe(options, recipe_changes(workspace, endpoint))
    chain = workspace_recipe(workspace, endpoint)
    try:
        return chain, of_run(options, open_store(chain.workspace, chain.stores))
    except (InputError, RecipeError) as error:
        if not is_recipe:
            raise
        note = f"{options.run_or_recipe} is a run there; the recipe is meant with workspace={workspace} instead of -w"
        raise InputError(error.message, f"{error.way_out}; {note}" if error.way_out else note) from None


def request_for_weights(
    options: EvaluateOptions, weights: str, name: str | None, workspace: str | None, endpoint: str | None
) -> tuple[ChainRecipe, EvaluationRequest]:
    """Weights at a path or URI, under *name*. Where no run was named, the first override is in ``run_or_recipe``."""
    first = options.run_or_recipe
    if first and "=" not in first:
        raise InputError(f"{first!r} and --weights are two things to evaluate", "leave one out")
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        raise InputError(f"--name {name!r} cannot be a name", "letters, digits, '.', '_' and '-', like vit-b16")
    options = replace(options, overrides=((first,) if first else ()) + options.overrides)
    options.check()
    chain = workspace_recipe(workspace, endpoint)
    store = open_store(chain.workspace, chain.stores)
    return chain, of_weights(options, store, weights, name or "", chain.stores)


def from_recipe(options: EvaluateOptions, changes: dict[str, Any]) -> tuple[ChainRecipe, EvaluationRequest]:
    """Run and suite of a recipe of the chain."""
    chain = load_chain(options.run_or_recipe, list(options.overrides), changes)
    run = require(chain.pretrain, "pretrain", options.run_or_recipe).run
    return chain, recipe_request(run, require(chain.evaluate, "evaluate", options.run_or_recipe))


def recipe_request(run: str, recipe: EvaluateRecipe) -> EvaluationRequest:
    """The suite that a recipe of the chain holds, for *run*."""
    return EvaluationRequest(run, _RECIPE_SUITE, lambda: recipe)


def of_run(options: EvaluateOptions, workspace: Store) -> EvaluationRequest:
    """A run or weights that were imported before, and the suite that is named; named none: the one it had before.

    Raises InputError when there is nothing of that name, or no suite.
    """
    if options.train and options.test:
        _default_suite(options.train, options.test)  # what cannot be meant is refused before what does not exist
    make_planner(workspace, options.run_or_recipe, Silent())
    return _with_suite(options, workspace)


def of_weights(options: EvaluateOptions, workspace: Store, uri: str, name: str, stores: Stores) -> EvaluationRequest:
    """The weights at *uri*, under *name*, and the suite that is named. Stores nothing. Raises as ``read_weights``."""
    # Imported here: it brings torch along, which all others do without until they are checked.
    from pipeline.evaluate.imported_weights import read_weights

    weights = read_weights(workspace, uri, name, stores)
    request = _with_suite(replace(options, run_or_recipe=weights.card.name), workspace)
    return replace(request, weights=weights)


def _exists(name: str, workspace: str, endpoint: str | None) -> bool:
    """True when *workspace* has a run, or imported weights, of that name."""
    if not re.fullmatch(NAME_PATTERN, name):
        return False
    try:
        make_planner(open_store(workspace, stores_of(workspace, endpoint)), name, Silent())
    except InputError:
        return False
    return True


def _with_suite(options: EvaluateOptions, workspace: Store) -> EvaluationRequest:
    run, overrides = options.run_or_recipe, list(options.overrides)
    if options.train and options.test:
        tree = apply_overrides(_default_suite(options.train, options.test).model_dump(mode="json"), overrides)
        recipe = build(EvaluateRecipe, tree, "evaluate")
        return EvaluationRequest(run, _TASK_SUITE, lambda: recipe)
    stored = stored_suites(workspace, run)
    if options.suite:
        return EvaluationRequest(run, *find_suite(options.suite, stored, overrides))
    return EvaluationRequest(run, *_only_suite(workspace, run, stored, overrides))


def _default_suite(train: str, test: str) -> EvaluateRecipe:
    """The probes on one task, for an evaluation without a recipe."""
    suite = [{"evaluator": name, "tasks": ["task"]} for name in default_probes()]
    return build(EvaluateRecipe, {"tasks": {"task": {"train": train, "test": test}}, "suite": suite}, "evaluate")


def find_suite(name: str, stored: dict[str, EvaluateRecipe], overrides: list[str]) -> tuple[str, ReadRecipe]:
    """The name of the suite called *name*, and a function that reads it, as often as it is called.

    It is a file, else one of those *stored* with the run, else one that ships with vitpipe: so a run that was judged
    on ``probes`` with other datasets keeps them.
    """
    path = Path(name)
    if not path.is_file() and name in stored:
        tree = apply_overrides(stored[name].model_dump(mode="json"), overrides)
        recipe = build(EvaluateRecipe, tree, "suite")
        return name, lambda: recipe
    if not path.is_file():
        path = _shipped(name, stored)
    return path.stem, lambda: load_suite(path, overrides)


def _only_suite(
    workspace: Store, run: str, stored: dict[str, EvaluateRecipe], overrides: list[str]
) -> tuple[str, ReadRecipe]:
    """The suite that *run* was judged on before. Raises InputError when there is none, or several."""
    if len(stored) == 1:
        return find_suite(next(iter(stored)), stored, overrides)
    if stored:
        raise InputError(f"run {run!r} has several suites", f"add --suite, one of: {', '.join(sorted(stored))}")
    raise InputError(
        f"run {run!r} in {workspace.uri} has not been evaluated yet", "add --suite FILE, or --train and --test"
    )


def load_suite(path: Path, overrides: list[str]) -> EvaluateRecipe:
    """The suite in a file: its own keys, or those below ``evaluate`` where the file is a recipe of the chain."""
    tree = read_recipe_file(path)
    inner = tree.get("evaluate", tree) if "suite" not in tree else tree
    return build(EvaluateRecipe, apply_overrides(inner, overrides), str(path))


def shipped_suites() -> list[str]:
    """Names of the suites that ship with vitpipe."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def _shipped(name: str, stored: dict[str, EvaluateRecipe]) -> Path:
    """The file of the suite that ships under *name*. Raises RecipeError that lists what there is."""
    if name not in shipped_suites():
        known = ", ".join(sorted({*shipped_suites(), *stored}))
        raise RecipeError([f"there is no such file, and no such suite; there are: {known}"], name)
    return _folder() / f"{name}.yaml"


def _folder() -> Path:
    return Path(str(importlib.resources.files("jobs") / "recipes" / "suites"))
