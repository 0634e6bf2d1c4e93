"""Where a suite comes from: a YAML file of its own, one that ships with vitpipe, or what a run was judged on before."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from pathlib import Path

from pipeline.base.config import apply_overrides, build, read_yaml
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store import Store
from pipeline.evaluate.suite import EvaluateRecipe

ReadRecipe = Callable[[], EvaluateRecipe]


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
