"""The floors: a folder may import only what stands below it, or itself; and nothing runs in a circle.

If a stage really needs another arrow, change the drawing in docs/architecture.md and DECISIONS.md, and then ``BELOW``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure.imports import HOUSE, Module, circles, plant, read_house, top_of

ROOT = Path(__file__).parents[2]

_PAIR = {"base"}
_STAGES = _PAIR | {"records", "models", "images"}
_TRAIN = _STAGES | {"corpus", "shard", "stream", "checkpoints"}
_PIPELINE = _TRAIN | {"train", "pretrain", "evaluate", "report"}

BELOW: dict[str, set[str]] = {
    "base": set(),
    "records": _PAIR,
    "models": _PAIR,
    "images": _PAIR | {"records", "models"},
    "corpus": _STAGES,
    "shard": _STAGES,
    "stream": _STAGES,
    "checkpoints": _STAGES,
    "train": _TRAIN,
    "pretrain": _TRAIN | {"train"},
    "evaluate": _TRAIN | {"train"},
    "report": {"base", "records"},
    "jobs": _PIPELINE | {"infra"},
    "infra": set(),
    "pipeline": set(),  # pipeline/__init__.py: the map, which imports nothing
}


def floor_of(name: str) -> str:
    """The floor of a dotted name: the folder below ``pipeline``, or ``jobs`` or ``infra``."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else parts[0]


def floor_breaches(modules: dict[str, Module]) -> list[str]:
    """Every import that does not go down, as ``file:line: what is wrong``."""
    breaches = []
    for module in modules.values():
        here = floor_of(module.name)
        if here not in BELOW:
            breaches.append(f"{module.path}: {here!r} is no floor of the house")
            continue
        for target, line in module.imports:
            there = floor_of(target)
            is_ours = top_of(target) in (*HOUSE, "tests")
            if is_ours and there not in ({here, "pipeline"} | BELOW[here]):
                breaches.append(f"{module.path}:{line}: {here!r} may not import {there!r} ({target})")
    return breaches


def test_every_import_goes_down() -> None:
    assert floor_breaches(read_house(ROOT)) == []


@pytest.mark.parametrize("top", HOUSE)
def test_nothing_runs_in_a_circle(top: str) -> None:
    assert circles(read_house(ROOT), top) == []


PLANTED = {
    "up": ("pipeline/base/x.py", "import pipeline.records.card"),
    "sideways": ("pipeline/stream/x.py", "from pipeline.shard.plan import Plan"),
    "inside a function": (
        "pipeline/shard/x.py",
        "def run():\n    if True:\n        from pipeline.stream import order\n",
    ),
    "type checking": (
        "pipeline/images/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline.corpus import source\n",
    ),
    "from the top": ("pipeline/pretrain/x.py", "from pipeline import evaluate"),
    "relative": ("pipeline/models/x.py", "from ..records import card"),
    "relative from a package": ("pipeline/records/deep/__init__.py", "from ...models import vit"),
    "from dot": ("pipeline/base/store/x.py", "from ... import images"),
    "by name": ("pipeline/train/x.py", "import importlib\nimportlib.import_module('pipeline.evaluate.probe')"),
    "by relative name": (
        "pipeline/train/x.py",
        "from importlib import import_module as _\nimport_module('..pretrain')",
    ),
    "by dunder": ("pipeline/corpus/x.py", "__import__('pipeline.train')"),
    "report computes": ("pipeline/report/x.py", "from pipeline.models.vit import Vit"),
    "pipeline to jobs": ("pipeline/evaluate/x.py", "import jobs.cli"),
    "pipeline to infra": ("pipeline/base/x.py", "from infra.local import s3_server"),
    "infra to jobs": ("infra/local/x.py", "def f():\n    import jobs\n"),
    "infra to pipeline": ("infra/x.py", "from pipeline.base import errors"),
    "to the tests": ("jobs/x.py", "from tests.support import browser"),
    "the map imports": ("pipeline/__init__.py", "from pipeline.base import errors"),
    "a new folder": ("pipeline/extras/x.py", ""),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_breach_is_caught(name: str, tmp_path: Path) -> None:
    path, source = PLANTED[name]
    targets = {
        f"pipeline/{folder}/{module}.py": ""
        for folder, module in (("records", "card"), ("shard", "plan"), ("stream", "order"), ("models", "vit"))
    }
    also = {"pipeline/evaluate/probe.py": "", "pipeline/corpus/source.py": "", "pipeline/images/decode.py": ""}
    more = {"pipeline/pretrain/task.py": "", "pipeline/train/loop.py": "", "pipeline/base/errors.py": ""}
    breaches = floor_breaches(plant(tmp_path, targets | also | more | {path: source}))
    assert [breach for breach in breaches if breach.startswith((f"{path}:", path.rpartition("/")[0]))] == breaches
    assert len(breaches) >= 1


def test_a_house_in_order_has_no_breach(tmp_path: Path) -> None:
    files = {
        "pipeline/base/errors.py": "import json\nfrom . import errors\n",
        "pipeline/records/card.py": "from pipeline.base import errors\nfrom ..base.errors import X\n",
        "pipeline/models/vit.py": "import torch\nfrom pipeline.base.errors import X\n",
        "pipeline/images/decode.py": "from pipeline.records import card\nimport pipeline.models.vit\n",
        "pipeline/train/loop.py": "from pipeline.stream.order import order\nfrom pipeline import __version__\n",
        "pipeline/stream/order.py": "def f():\n    from pipeline.images import decode\n",
        "pipeline/evaluate/evaluators/knn.py": "from pipeline.train.loop import train\nfrom . import linear\n",
        "pipeline/evaluate/evaluators/linear.py": "",
        "pipeline/report/page.py": "from pipeline.records.card import Card\n",
        "jobs/demo.py": "from infra.local.s3_server import LocalS3\nfrom pipeline.evaluate.evaluators import knn\n",
        "infra/local/s3_server.py": "import subprocess\n",
    }
    modules = plant(tmp_path, files)
    assert floor_breaches(modules) == []
    assert circles(modules, "pipeline") == []


def test_planted_circles_are_caught(tmp_path: Path) -> None:
    files = {
        "pipeline/base/a.py": "from pipeline.base import b\n",
        "pipeline/base/b.py": "def late():\n    from .c import thing\n",
        "pipeline/base/c.py": "import importlib\nimportlib.import_module('pipeline.base.a')\n",
        "pipeline/base/d.py": "from pipeline.base import a\n",
        "pipeline/base/store/__init__.py": "from pipeline.base.store.s3 import S3\n",
        "pipeline/base/store/s3.py": "from pipeline.base.store import Store\n",
    }
    assert circles(plant(tmp_path, files), "pipeline") == [
        ["pipeline.base.a", "pipeline.base.b", "pipeline.base.c"],
        ["pipeline.base.store", "pipeline.base.store.s3"],
    ]
