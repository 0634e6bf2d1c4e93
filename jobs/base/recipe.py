"""The recipe of the chain: one YAML file with a section per stage. A stage's command reads its own section."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.base.config import Config, apply_overrides, build, read_extended
from pipeline.base.errors import RecipeError
from pipeline.base.store.open import normalise_uri
from pipeline.base.store.protocol import Stores
from pipeline.corpus.recipe import DuplicatesRecipe, Kind, SourceRecipe, SplitRecipe
from pipeline.evaluate.recipe import EvaluateRecipe
from pipeline.pretrain.recipe import NAME_PATTERN, PretrainRecipe
from pipeline.shard.recipe import ShardRecipe


class ShardStage(ShardRecipe):
    """One dataset to make, or one for each part of a split: its sources, its name, and how it is sharded."""

    source: str | tuple[SourceRecipe, ...] = Field(
        description="folder, file, s3:// prefix or object, or embedded://NAME/SPLIT; or a list of them to be joined"
    )
    kind: Kind = Field("auto", description="what a single source is; auto looks")
    name: str = Field(pattern=NAME_PATTERN)
    classes: str = Field("", description="file with the class table: names, and where given synsets and parents")
    duplicates: DuplicatesRecipe = DuplicatesRecipe()
    split: SplitRecipe = SplitRecipe()

    @model_validator(mode="after")
    def _part_names(self) -> Self:
        bad = [part for part in self.split.parts if not re.fullmatch(NAME_PATTERN, part)]
        if bad:
            raise ValueError(f"{bad[0]!r} cannot be the name of a part; it must match {NAME_PATTERN}")
        return self

    def sources(self) -> list[SourceRecipe]:
        """Where the images are."""
        if isinstance(self.source, str):
            return [SourceRecipe(source=self.source, kind=self.kind)]
        return list(self.source)

    def dataset_names(self) -> dict[str, str]:
        """Names of the datasets, by the part of the split; "" stands for the whole."""
        return {part: f"{self.name}-{part}" for part in self.split.parts} or {"": self.name}


class ChainRecipe(Config):
    """Everything from images to the page. Sections that a command does not need may be left out."""

    workspace: str = Field(description="URI of the workspace: a folder or s3://bucket/prefix")
    stores: Stores = Field({}, description="settings per bucket: endpoint, region, profile, anonymous, requester_pays")
    shard: tuple[ShardStage, ...] = ()
    pretrain: PretrainRecipe | None = None
    evaluate: EvaluateRecipe | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [name for stage in self.shard for name in stage.dataset_names().values()]
        if len(set(names)) != len(names):
            raise ValueError("two datasets of shard have the same name")
        return self


def load_chain(path: str, overrides: list[str], changes: dict[str, Any] | None = None) -> ChainRecipe:
    """Read a recipe file, or one that ships with vitpipe by its name, with what it extends and overrides applied.

    *changes* are top-level values given as options; they win over the file. The workspace becomes absolute.
    """
    tree = read_recipe_file(resolve_recipe(path)) | (changes or {})
    recipe = build(ChainRecipe, apply_overrides(tree, overrides), path)
    return recipe.model_copy(update={"workspace": normalise_uri(recipe.workspace)})


def resolve_recipe(name: str) -> Path:
    """The file called *name*: a path, or a recipe that ships with vitpipe. Raises RecipeError."""
    path = Path(name)
    if path.exists():
        return path
    known = sorted(file.stem for file in _shipped_folder().glob("*.yaml"))
    if name in known:
        return _shipped_folder() / f"{name}.yaml"
    raise RecipeError([f"there is no such file; recipes that ship with vitpipe: {', '.join(known)}"], name)


def _shipped_folder() -> Path:
    return Path(str(importlib.resources.files("jobs") / "recipes"))


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The keys of the recipe file at *path*, with those of what it extends. Raises RecipeError."""
    return read_extended(path, _find_base)


def _find_base(name: str, folder: Path) -> Path:
    """The recipe that ``extends: name`` in a file of *folder* means: a file beside it, or one that ships.

    A shipped recipe that was copied elsewhere still finds the bases that ship.
    """
    candidates = [folder / f"{name}.yaml", folder / name, _shipped_folder() / f"{name}.yaml"]
    return next((path for path in candidates if path.is_file()), None) or resolve_recipe(name)


def require(section: Any, name: str, source: str) -> Any:
    """*section*. Raises RecipeError when the recipe *source* has no section *name*."""
    if not section:
        raise RecipeError([f"section '{name}' is missing, and this command needs it"], source)
    return section
