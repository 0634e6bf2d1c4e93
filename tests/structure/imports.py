"""What imports what, read from the source: every import counts, in functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOUSE = ("pipeline", "jobs", "infra")


@dataclass
class Module:
    """One source file: its dotted name, the names it imports with their lines, and its string constants."""

    name: str
    path: Path
    is_package: bool
    tree: ast.Module
    imports: list[tuple[str, int]] = field(default_factory=list)

    def constants(self) -> Iterator[tuple[str, int]]:
        """Every string constant with its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value, node.lineno


def read_house(root: Path) -> dict[str, Module]:
    """Every module of the house below *root*, by dotted name, with its imports resolved."""
    modules = {}
    for top in HOUSE:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = Module(
                name, path.relative_to(root), is_package, ast.parse(path.read_text(encoding="utf-8"))
            )
    known = {parent for name in modules for parent in _with_parents(name)}  # folders without __init__.py too
    for module in modules.values():
        module.imports = [found for node in ast.walk(module.tree) for found in _imports_of(node, module, known)]
    return modules


def _imports_of(node: ast.AST, module: Module, known: set[str]) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, node.lineno
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(node.module or "", node.level, module)
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield (full if full in known else base), node.lineno
    elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
        name = node.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            level = len(name.value) - len(name.value.lstrip("."))
            yield _absolute(name.value.lstrip("."), level, module), node.lineno


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _absolute(name: str, level: int, module: Module) -> str:
    """The full name of what is imported as *name* with *level* leading dots inside *module*."""
    if level == 0:
        return name
    parts = module.name.split(".")
    package = parts if module.is_package else parts[:-1]
    base = package[: len(package) - (level - 1)]
    return ".".join([*base, name] if name else base)


def top_of(name: str) -> str:
    """``ray`` of ``ray.data.context``."""
    return name.partition(".")[0]


def owner(name: str, modules: dict[str, Module]) -> str | None:
    """The module of the house that *name* is or stands in, None for other people's packages."""
    while name:
        if name in modules:
            return name
        name = name.rpartition(".")[0]
    return None


def circles(modules: dict[str, Module], top: str) -> list[list[str]]:
    """Groups of modules below *top* that import each other in a circle (strongly connected components)."""
    graph = {
        name: {found for target, _ in module.imports if (found := owner(target, modules))} - {name}
        for name, module in modules.items()
        if top_of(name) == top
    }
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in graph if other in reach[name] and name in reach[other])) for name in graph
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = {start}
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def packages_reached(modules: dict[str, Module], start: str) -> dict[str, str]:
    """Other people's packages that importing anything at or below *start* can load, each with the module that does.

    Importing ``a.b.c`` runs ``a`` and ``a.b`` too, so those count.
    """
    graph = {
        name: {
            holder
            for target, _ in [*module.imports, (name, 0)]
            for holder in _with_parents(target)
            if holder in modules
        }
        for name, module in modules.items()
    }
    begin = [name for name in modules if name == start or name.startswith(f"{start}.")]
    found: dict[str, str] = {}
    for name in sorted({other for first in begin for other in _reachable(first, graph)}):
        for target, _ in modules[name].imports:
            if top_of(target) not in HOUSE:
                found.setdefault(top_of(target), name)
    return found


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    """A small house below *root* made of *files* (path -> source), for breaches that have to be caught."""
    for name, text in files.items():
        path = root / name
        for folder in [path.parent, *path.parent.parents]:
            if folder == root:
                break
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")
    return read_house(root)
