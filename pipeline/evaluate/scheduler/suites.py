"""What a run was last asked to be judged on, kept by the name of the suite."""

from __future__ import annotations

from pipeline.base.config import build
from pipeline.base.errors import DamageError, RecipeError
from pipeline.base.store import Store
from pipeline.evaluate.suite import EvaluateRecipe
from pipeline.records.ledger import StoredSuite, suite_prefix
from pipeline.records.record import parse_record


def keep_suite(workspace: Store, run: str, name: str, recipe: EvaluateRecipe) -> None:
    """Remember what *run* is judged on as suite *name*; one of the same name is replaced."""
    data = StoredSuite(run=run, name=name, recipe=recipe.model_dump(mode="json")).to_json()
    workspace.put(f"{suite_prefix(run)}{name}.json", data)


def kept_suites(workspace: Store, run: str) -> dict[str, EvaluateRecipe]:
    """The suites of *run* by name. One that this release cannot read is left out."""
    found = {}
    for info in list(workspace.list(suite_prefix(run))):
        try:
            stored = parse_record(StoredSuite, workspace.read(info.key), info.key)
            found[stored.name] = build(EvaluateRecipe, stored.recipe, info.key)
        except (FileNotFoundError, DamageError, RecipeError):
            continue
    return found
