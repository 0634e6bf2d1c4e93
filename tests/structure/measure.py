"""The house in numbers: files, arrows between them, circles, names with two meanings, and three walks through it.

``python -m tests.structure.measure [ROOT]`` prints one line for each, ``-v`` also the names behind the counts. An arrow
goes to the file that defines a name, through faces (``__init__.py``) that only hand it on; imports inside functions and
under TYPE_CHECKING count. Faces are no files here.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.structure.imports import Module, circles, owner, read_house, top_of

ROOT = Path(__file__).parents[2]
Graph = dict[str, set[str]]

# Walks: the files that are read to know how a JPEG becomes a tensor, and how a checkpoint gets to the page.
JPEG = ("pipeline.shard.stage", "pipeline.stream.loader", "pipeline.train.device")
PAGE = ("pipeline.evaluate.stage", "pipeline.report.stage")
PAGE_FOLDERS = ("evaluate", "report", "records", "checkpoints")
EVALUATORS = "pipeline.evaluate.evaluators"
LINEAR_ALONE = {f"{EVALUATORS}.{name}" for name in ("registry", "probe", "linear", "logistic")}
# The files that pass the learning rate on from the YAML to the optimizer: they read, carry or use it.
LEARNING_RATE = {
    "read": (
        "jobs.pretrain",
        "jobs.base.recipe",
        "pipeline.base.config",
        "pipeline.pretrain.recipe",
        "pipeline.train.recipe",
    ),
    "carry": ("jobs.cli", "pipeline.pretrain.stage", "pipeline.train.ray_executor", "pipeline.pretrain.worker"),
    "use": (
        "pipeline.pretrain.trainer",
        "pipeline.train.loop",
        "pipeline.train.lr_schedule",
        "pipeline.train.engine",
        "pipeline.train.optimizer",
    ),
}


@dataclass(frozen=True)
class Measures:
    """What is counted; see ``rows`` for the words."""

    lines: dict[str, int]  # of each file, by module
    graph: Graph  # module -> modules that it imports from, faces left out
    circles: list[list[str]]
    class_names: dict[str, set[str]]  # those that more than one file defines

    @property
    def sibling_only(self) -> list[str]:
        """Modules that only one other imports, which stands in the same folder."""
        importers: Graph = defaultdict(set)
        for name, targets in self.graph.items():
            for target in targets:
                importers[target].add(name)
        return sorted(
            name
            for name in self.graph
            if len(importers[name]) == 1 and _folder(next(iter(importers[name]))) == _folder(name)
        )

    def fan_out(self) -> list[tuple[int, str]]:
        """How many modules each module imports from, the most first."""
        return sorted(((len(targets), name) for name, targets in self.graph.items()), reverse=True)

    def walk(self, *starts: str, without: frozenset[str] = frozenset()) -> set[str]:
        """Every module that *starts* import, directly or not, and they themselves."""
        seen, waiting = set(starts), list(starts)
        while waiting:
            for target in self.graph.get(waiting.pop(), set()) - seen - without:
                seen.add(target)
                waiting.append(target)
        return seen

    def jpeg_walk(self) -> set[str]:
        """JPEG -> tensor: what the shard stage, the stream's loader and the device's normalise import."""
        return self.walk(*JPEG)

    def page_walk(self) -> set[str]:
        """Checkpoint -> page: what evaluating it by one linear probe and its page import, of four folders."""
        others = {name for name in self.graph if name.startswith(f"{EVALUATORS}.")} - LINEAR_ALONE
        return {name for name in self.walk(*PAGE, without=frozenset(others)) if _stage(name) in PAGE_FOLDERS}

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of every count."""
        lines = sorted(self.lines.values())
        quartiles = ", ".join(f"{value:.0f}" for value in statistics.quantiles(lines, n=4))
        fan = self.fan_out()
        jpeg = self.jpeg_walk()
        num_rate, num_carriers = sum(map(len, LEARNING_RATE.values())), len(LEARNING_RATE["carry"])
        return [
            ("Python files (faces left out)", f"{len(lines)}"),
            ("lines of a file: quartiles, largest", f"{quartiles}, {lines[-1]}"),
            ("imports from one file to another", f"{sum(map(len, self.graph.values()))}"),
            ("most imports of one file", ", ".join(f"{count} ({name})" for count, name in fan[:3])),
            ("files that only one sibling imports", f"{len(self.sibling_only)}"),
            ("files in a circle", f"{sum(map(len, self.circles))}"),
            ("class names with several meanings", f"{len(self.class_names)}"),
            ("walk JPEG -> tensor", f"{len(jpeg)}, {sum(_stage(name) != 'base' for name in jpeg)} above base"),
            ("walk learning rate: YAML -> optimizer", f"{num_rate}, {num_rate - num_carriers} without carriers"),
            ("walk checkpoint -> page", f"{len(self.page_walk())}"),
        ]


def measure(root: Path) -> Measures:
    """Count the house below *root*."""
    modules = read_house(root)
    files = {name: module for name, module in modules.items() if not module.is_package}
    graph = {name: _targets(module, modules) - {name} for name, module in files.items()}
    class_names: Graph = defaultdict(set)
    for name, module in files.items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                class_names[node.name].add(name)
    return Measures(
        lines={name: len((root / file.path).read_text(encoding="utf-8").splitlines()) for name, file in files.items()},
        graph={name: {target for target in targets if target in files} for name, targets in graph.items()},
        circles=[group for top in ("pipeline", "jobs", "infra") for group in circles(modules, top)],
        class_names={name: holders for name, holders in class_names.items() if len(holders) > 1},
    )


def _targets(module: Module, modules: dict[str, Module]) -> set[str]:
    targets = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                targets.add(whole if whole in modules else _definer(node.module, alias.name, modules))
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    return {target for name in targets if (target := owner(name, modules) or "")}


def _definer(name: str, attribute: str, modules: dict[str, Module]) -> str:
    """The module that defines *attribute*, which module *name* may only hand on."""
    while name in modules:
        handed = {
            alias.asname or alias.name: node.module
            for node in modules[name].tree.body
            if isinstance(node, ast.ImportFrom) and node.module and top_of(node.module) in ("pipeline", "jobs", "infra")
            for alias in node.names
        }
        if attribute not in handed:
            return name
        name = handed[attribute]
    return name


def _folder(name: str) -> str:
    return name.rpartition(".")[0]


def _stage(name: str) -> str:
    """``shard`` of ``pipeline.shard.plan``."""
    return name.split(".")[1] if name.startswith("pipeline.") else top_of(name)


def _print(measures: Measures, verbose: bool) -> None:
    for label, value in measures.rows():
        print(f"{label:42} {value}")
    if verbose:
        print("\nonly one sibling imports:", *measures.sibling_only, sep="\n  ")
        print("\nclass names with several meanings:", *map(str, measures.class_names.items()), sep="\n  ")
        print("\nwalk checkpoint -> page:", *sorted(measures.page_walk()), sep="\n  ")


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:] if argument != "-v"]
    _print(measure(folders[0] if folders else ROOT), "-v" in sys.argv)
