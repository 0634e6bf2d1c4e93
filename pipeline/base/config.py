"""Recipes: typed, complete, from YAML. An unknown key is an error that names the nearest key; all errors at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base.errors import RecipeError

MAX_RECIPE_BYTES = 1_000_000  # a recipe is a page of text; anything bigger is a mistake or an attack


class Config(BaseModel):
    """Base of every recipe: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


ConfigType = TypeVar("ConfigType", bound=Config)
Value = TypeVar("Value")
_PER_ATTEMPT = "may change between the attempts of one run"
PerAttempt = Annotated[Value, _PER_ATTEMPT]  # of a field: how a run is worked on, not what comes out; not fingerprinted


def per_attempt_fields(kind: type[Config]) -> dict[str, Any]:
    """The fields of *kind*, and of the configs in it, that are ``PerAttempt``: as ``model_dump`` takes *exclude*."""
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if _PER_ATTEMPT in field.metadata:
            fields[name] = True
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            fields |= {name: inner} if (inner := per_attempt_fields(field.annotation)) else {}
    return fields


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags that build objects and without aliases, which can blow up a small file."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in a recipe; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        names = [key.value for key, _ in node.value]
        twice = sorted({name for name in names if names.count(name) > 1}, key=str)
        if twice:
            raise yaml.YAMLError(f"given twice: {', '.join(map(str, twice))}")
        return mapping


def _read_value(text: str) -> Any:
    """What the YAML *text* says. Raises yaml.YAMLError for whatever is wrong with it."""
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - _PlainLoader is a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # a date or a number that cannot be
        raise yaml.YAMLError(str(error)) from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in *text*. Raises RecipeError for broken YAML, tags, aliases, or no mapping at all."""
    if len(text) > MAX_RECIPE_BYTES:
        raise RecipeError([f"larger than {MAX_RECIPE_BYTES} bytes; this is not a recipe"], source)
    try:
        value: Any = _read_value(text)
    except yaml.YAMLError as error:
        raise RecipeError([f"not valid YAML: {' '.join(str(error).split())}"], source) from None
    if not isinstance(value, dict):
        raise RecipeError(["expected a mapping of keys to values at the top"], source)
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Parse the recipe file at *path*."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        raise RecipeError([f"cannot be read: {reason}"], str(path)) from None
    return parse_yaml(text, str(path))


def read_extended(path: Path, resolve: Callable[[str, Path], Path]) -> dict[str, Any]:
    """The recipe file at *path*, merged over the recipe that its ``extends`` names, and so on.

    Mappings are merged key by key; any other value, a list too, replaces that of the base, and null takes it away.
    *resolve* gives the file of a base from its name and the folder of the file that names it. Raises RecipeError for a
    base that extends itself.
    """
    chain = [path]
    tree = read_yaml(path)
    while (base := tree.pop("extends", None)) is not None:
        if not isinstance(base, str):
            raise RecipeError(["extends: give the name of one recipe"], str(chain[-1]))
        chain.append(resolve(base, chain[-1].parent))
        if chain[-1].resolve() in [file.resolve() for file in chain[:-1]]:
            raise RecipeError([f"extends: {base} extends itself"], str(chain[-2]))
        tree = _merge(read_yaml(chain[-1]), tree)
    return tree


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        known = base.get(name)
        merged[name] = _merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return {name: value for name, value in merged.items() if value is not None or name not in base}


def apply_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of *tree* with every ``key.sub=value`` applied; values are read as YAML. List items by number."""
    result: dict[str, Any] = _copy(tree)
    problems = [problem for override in overrides if (problem := _apply(result, override))]
    if problems:
        raise RecipeError(problems, "override")
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(inner) for name, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _apply(tree: Any, override: str) -> str | None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        return f"{override!r} is not of the form key.sub=value"
    try:
        value = _read_value(text)
    except yaml.YAMLError:
        return f"{override!r}: the value is not valid YAML"
    *parents, last = path.split(".")
    for name in parents:
        if isinstance(tree, list) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        elif isinstance(tree, dict):
            tree = tree.setdefault(name, {})
        else:
            return f"{override!r}: nothing at {name!r} to set a key of"
    if isinstance(tree, list) and last.isdecimal() and int(last) < len(tree):
        tree[int(last)] = value
    elif isinstance(tree, dict):
        tree[last] = value
    else:
        return f"{override!r}: nothing at {last!r} to set"
    return None


def build(kind: type[ConfigType], tree: dict[str, Any], source: str = "recipe") -> ConfigType:
    """Validate *tree* as a *kind*. Raises RecipeError with one line per problem."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(kind, problem) for problem in _own_problems(error.errors(include_url=False))]
        raise RecipeError(list(dict.fromkeys(problems)), source) from None


def load(kind: type[ConfigType], path: str | Path, overrides: list[str] | None = None) -> ConfigType:
    """Read, override and validate the recipe at *path*."""
    return build(kind, apply_overrides(read_yaml(path), overrides or []), str(path))


def _own_problems(problems: list[Any]) -> list[Any]:
    """*problems* without the lists that pydantic calls too short only since it refused what is in them."""
    locations = [problem["loc"] for problem in problems]

    def follows(problem: Any) -> bool:
        outer = problem["loc"]
        return problem["type"] == "too_short" and any(
            len(outer) < len(inner) and inner[: len(outer)] == outer for inner in locations
        )

    return [problem for problem in problems if not follows(problem)]


def _explain(kind: type[Config], problem: Any) -> str:
    """One line for one of pydantic's errors."""
    path, models = _locate(kind, problem["loc"])
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = sorted({name for model in models for name in model.model_fields})
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}' - {hint}"
    if problem["type"] == "missing":
        return f"'{key}' is required"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) or value is None else ""
    return f"'{key}': {message}{shown}" if key else f"{message}"


def _locate(kind: type[Config], location: tuple[Any, ...]) -> tuple[list[str], list[type[Config]]]:
    """The path of *location* as it is written in a recipe, and the models that may hold its last part.

    Pydantic adds the name of the member it tried when a field takes one of several models; nobody writes that.
    """
    path: list[str] = []
    models = holders = [kind]
    for part in location:
        holders = models
        tried = [model for model in models if part in _labels(model)] if len(models) > 1 else []
        if tried:
            models = tried
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or models
        path.append(str(part))
    return path, holders


def _labels(model: type[Config]) -> set[Any]:
    """What pydantic calls *model* inside a union: its class name, or the value of its discriminator."""
    literals = [field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal]
    return {model.__name__}.union(*(get_args(annotation) for annotation in literals))


def _models_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
