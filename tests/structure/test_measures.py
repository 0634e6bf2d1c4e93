"""The house stays as small as it is: budgets are the numbers reached, and faces and pages name what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure.imports import Module, plant, read_house
from tests.structure.measure import JPEG, LEARNING_RATE, PAGE, measure

ROOT = Path(__file__).parents[2]
ASSEMBLER = "pipeline.pretrain.trainer"  # puts together all that an attempt of a rank is made of

# No torch: it takes two seconds and 200 MB in every process that shards, decodes, schedules or shows a status.
TORCH_FREE = [
    "pipeline.base",
    "pipeline.records",
    "pipeline.images",
    "pipeline.corpus",
    "pipeline.shard",
    "pipeline.stream.recipe",
    "pipeline.stream.order",
    "pipeline.stream.mixture",
    "pipeline.stream.dataset",
    "pipeline.stream.cache",
    "pipeline.stream.batch",
    "pipeline.stream.augment",
    "pipeline.stream.mixup",
    "pipeline.stream.audit",
    "pipeline.stream.audit_check",
    "pipeline.stream.loader_worker",
    "pipeline.stream.loader_pool",
    "pipeline.stream.index",
    "pipeline.stream.prefetch",
    "pipeline.stream.subset",
    "pipeline.stream.shuffle_quality",
    "pipeline.stream.profiling",
    "pipeline.train.recipe",
    "pipeline.train.watchdog",
    "pipeline.train.heartbeat",
    "pipeline.train.deepspeed_config",
    "pipeline.pretrain.recipe",
    "pipeline.pretrain.plan",
    "pipeline.pretrain.run_card",
    "pipeline.pretrain.objectives.recipe",
    "pipeline.checkpoints.card",
    "pipeline.checkpoints.retention",
    "pipeline.checkpoints.warm_start",
    "pipeline.evaluate.recipe",
    "pipeline.evaluate.plan",
    "pipeline.evaluate.discovery",
    "pipeline.evaluate.changes",
    "pipeline.evaluate.model_ref",
    "pipeline.evaluate.ledger",
    "pipeline.evaluate.comparison",
    "pipeline.evaluate.metrics",
    "pipeline.evaluate.cleanup",
    "pipeline.evaluate.leakage",
    "pipeline.evaluate.splits",
    "pipeline.report",
    "jobs.base",
]


def test_the_house_keeps_to_its_budgets() -> None:
    measures = measure(ROOT)
    assert len(measures.lines) <= 240
    assert max(measures.lines.values()) < 400
    assert sum(map(len, measures.graph.values())) <= 1400
    assert measures.circles == []
    assert measures.class_names == {}
    assert len(measures.sibling_only) <= 48
    assert {name: count for count, name in measures.fan_out() if count > (31 if name == ASSEMBLER else 22)} == {}


def test_the_three_walks_stay_short() -> None:
    measures = measure(ROOT)
    names = {*JPEG, *PAGE, *(name for part in LEARNING_RATE.values() for name in part)}
    assert names <= set(measures.lines), "a walk names a file that there is not"
    jpeg = measures.jpeg_walk()
    assert len(jpeg) <= 51
    assert sum(not name.startswith("pipeline.base.") for name in jpeg) <= 34
    assert len(measures.page_walk()) <= 45
    assert len([name for part in LEARNING_RATE.values() for name in part]) <= 14


def test_a_planted_circle_and_a_class_of_two_meanings_are_counted(tmp_path: Path) -> None:
    files = {
        "jobs/a.py": "from jobs import b\nclass Same: ...\n",
        "jobs/b.py": "def f():\n    from jobs.a import Same\n",
        "jobs/c.py": "class Same: ...\n",
        "jobs/d/__init__.py": "from jobs.c import Same\n",
        "jobs/e.py": "from jobs.d import Same\n",
    }
    plant(tmp_path, files)
    measures = measure(tmp_path)
    assert measures.circles == [["jobs.a", "jobs.b"]]
    assert set(measures.class_names) == {"Same"}
    assert measures.graph["jobs.e"] == {"jobs.c"}  # through the face that hands it on
    assert measures.sibling_only == ["jobs.a", "jobs.b", "jobs.c"]


def modules_below(names: list[str], modules: dict[str, Module]) -> list[str]:
    return [name for name in modules if any(name == start or name.startswith(f"{start}.") for start in names)]


def test_what_does_without_torch_does_not_import_it() -> None:
    names = modules_below(TORCH_FREE, read_house(ROOT))
    assert len(names) > 100
    lines = [
        "import importlib, sys",
        "for name in sys.argv[1:]:",
        "    importlib.import_module(name)",
        "    assert 'torch' not in sys.modules, name",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- pages and docstrings name files that are there -------------------------------------------------------------------

PAGES = ("README.md", "CONTRIBUTING.md", "docs", "examples", "pipeline", "jobs", "infra", "tests/golden")
_PATH = re.compile(r"(?<![\w/.-])((?:pipeline|jobs|infra|tests|docs|examples)/[\w./*{},-]*\w)")
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def missing_paths(text: str, folder: Path, root: Path, *, is_markdown: bool = True) -> list[str]:
    """Paths in *text* (of a file in *folder*), and targets of its links, that do not exist below *root*."""
    paths = [path for path in _PATH.findall(text) if not re.search(r"[*{}<>]", path)]
    links = _LINK.findall(text) if is_markdown else []
    missing = [path for path in paths if not (root / path).exists() and not (root / f"{path}.py").exists()]
    return missing + [link for link in links if not (folder / link).exists()]


def test_every_path_that_is_named_exists() -> None:
    wrong = {}
    for page in PAGES:
        files = [ROOT / page] if (ROOT / page).is_file() else sorted((ROOT / page).rglob("*"))
        for file in files:
            if file.suffix not in (".md", ".py", ".yaml", ".toml") or "workspace" in file.parts:
                continue
            text = file.read_text(encoding="utf-8")
            if missing := missing_paths(text, file.parent, ROOT, is_markdown=file.suffix == ".md"):
                wrong[str(file.relative_to(ROOT))] = missing
    assert wrong == {}


def test_a_planted_path_is_caught(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("x")
    text = "see docs/a.md, docs/b.md and [this](a.md), [that](c.md); s3://bucket/docs/no.md"
    assert missing_paths(text, tmp_path / "docs", tmp_path) == ["docs/b.md", "c.md"]


def test_each_face_names_the_files_of_its_folder() -> None:
    wrong = {}
    for face in [*sorted(ROOT.glob("pipeline/**/__init__.py")), ROOT / "jobs" / "base" / "__init__.py"]:
        text = face.read_text(encoding="utf-8")
        files = {path.name for path in face.parent.glob("*.py")} - {"__init__.py"}
        named = set(re.findall(r"(?<![\w/.])(\w+\.py)\b", text))
        below = {path.name for path in face.parent.rglob("*.py")}
        if differing := (files - named) | (named - below):
            wrong[str(face.relative_to(ROOT))] = sorted(differing)
    assert wrong == {}


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_pages_are_there(page: str) -> None:
    assert (ROOT / page).is_file()
