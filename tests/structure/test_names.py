"""Names are the field's words: what a thing is, not how it came about. The words below are no names in the house.

A word of ``ALONE`` may be a part of a longer name (``place_text``); one of ``ANYWHERE`` may not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.imports import Module, plant, read_house

ROOT = Path(__file__).parents[2]

ANYWHERE = frozenset(
    {"found", "told", "tell", "said", "say", "hear", "asked", "wish", "given", "wanted", "laid", "lay"}
    | {"theirs", "mine", "ours"}
)
ALONE = frozenset(
    {"one", "other", "item", "place", "spot", "here", "where", "whole", "standing", "stands", "held", "keep"}
    | {"made_of", "shaping", "words", "what", "who"}
)
# Fields of records and recipes, columns, and what a library calls so: these are data.
DATA: dict[str, set[str]] = {
    "pipeline/base/store/object_file.py": {"tell"},  # of io.RawIOBase
    "pipeline/evaluate/features/storage.py": {"made_of"},  # of the card of features
    "pipeline/records/corpus.py": {"made_of"},  # as in the card of a dataset
    "pipeline/records/dataset.py": {"made_of"},
    "pipeline/records/ledger.py": {"place"},
    "pipeline/shard/commit.py": {"place"},
}


def names_of(module: Module) -> Iterator[tuple[str, int]]:
    """Every name that the module gives to a file, class, function, parameter or variable, with its line."""
    yield module.path.stem, 1
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, getattr(node, "lineno", 1)
        elif isinstance(node, ast.MatchAs) and node.name:
            yield node.name, node.lineno


def parts_of(name: str) -> list[str]:
    """``FoundRows`` and ``found_rows`` are both found, rows."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


def bad_names(modules: dict[str, Module]) -> list[str]:
    """Every name that is none, as ``file:line: name``."""
    bad = []
    for module in modules.values():
        path = module.path.as_posix()
        for name, line in names_of(module):
            if name in DATA.get(path, ()):
                continue
            if name.strip("_").lower() in ALONE or ANYWHERE.intersection(parts_of(name)):
                bad.append(f"{path}:{line}: {name}")
    return bad


def test_names_say_what_a_thing_is() -> None:
    assert bad_names(read_house(ROOT)) == []


PLANTED = {
    "a file": ("pipeline/base/found.py", ""),
    "a class": ("pipeline/base/x.py", "class Told:\n    pass\n"),
    "a function": ("pipeline/base/x.py", "def say_it():\n    pass\n"),
    "a parameter": ("pipeline/base/x.py", "def f(what):\n    pass\n"),
    "a variable": ("pipeline/base/x.py", "all_found = 1\n"),
    "a loop": ("pipeline/base/x.py", "x = [one for one in ()]\n"),
    "an attribute": ("pipeline/base/x.py", "def f(self):\n    self._held = 1\n"),
    "an alias": ("pipeline/base/x.py", "import json as words\n"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_name_is_caught(kind: str, tmp_path: Path) -> None:
    path, source = PLANTED[kind]
    assert len(bad_names(plant(tmp_path, {path: source}))) == 1


def test_longer_names_may_hold_a_word(tmp_path: Path) -> None:
    source = "place_text = 1\nlayout = 2\nessay = 3\notherwise = 4\nitems = 5\n"
    assert bad_names(plant(tmp_path, {"pipeline/base/x.py": source})) == []
