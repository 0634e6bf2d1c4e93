"""The doors: each heavy dependency enters at few named places; and what no file of the house may hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.structure.imports import Module, packages_reached, plant, read_house, top_of

ROOT = Path(__file__).parents[2]
MAX_LINES = 400

# package -> paths at which it may enter: a file, or a folder with a slash at its end
DOORS = {
    "ray": ("pipeline/corpus/", "pipeline/shard/", "pipeline/train/", "pipeline/evaluate/", "jobs/"),
    "deepspeed": ("pipeline/train/engine.py",),
    "webdataset": ("pipeline/shard/", "pipeline/stream/"),
    "boto3": ("pipeline/base/store/s3.py",),
    "botocore": ("pipeline/base/store/s3.py",),
}
ONE_MODULE_EACH = {"ray": ("pipeline/corpus/", "pipeline/shard/", "pipeline/train/", "pipeline/evaluate/")}
RANK_NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
RANK_DOOR = "pipeline/base/world.py"
PROBE = "pipeline.evaluate.evaluators"


def door_breaches(modules: dict[str, Module]) -> list[str]:
    """Every import of a heavy dependency beside its doors."""
    breaches = []
    users: dict[tuple[str, str], set[str]] = defaultdict(set)
    for module in modules.values():
        path = module.path.as_posix()
        for target, line in module.imports:
            package = top_of(target)
            if package in DOORS and not path.startswith(DOORS[package]):
                breaches.append(f"{path}:{line}: {package} may not enter here")
            for folder in ONE_MODULE_EACH.get(package, ()):
                if path.startswith(folder):
                    users[package, folder].add(path)
    for (package, folder), paths in users.items():
        if len(paths) > 1:
            breaches.append(f"{folder}: {package} enters at {len(paths)} modules, one is allowed: {sorted(paths)}")
    return breaches


def rank_breaches(modules: dict[str, Module]) -> list[str]:
    """Every place of the pipeline, beside ``World``, that names the variables of a rank."""
    return [
        f"{module.path}:{line}: {text!r} is read in {RANK_DOOR} only"
        for module in modules.values()
        if top_of(module.name) == "pipeline" and module.path.as_posix() != RANK_DOOR
        for text, line in module.constants()
        if text in RANK_NAMES
    ]


def tracked_files(root: Path) -> list[Path]:
    """What git has, or would have after ``git add``."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file()]


def leaks_in(text: str, hosts: set[str]) -> list[str]:
    """Paths of a developer's machine and hosts of package registries in *text*."""
    machine = re.findall(r"(?<![\w.~-])/(?:work|root)/[\w.-]*|/home/(?!ray\b)\w+|/tmp/x/", text)
    return machine + [host for host in sorted(hosts) if host in text]


def registry_hosts() -> set[str]:
    """Known hosts, and those that this machine's installers are told to use."""
    known = {"py" + "pi.org", "python" + "hosted.org", "anaconda" + ".org/channels"}
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX")
    told = {urlsplit(url).hostname for name in names for url in os.environ.get(name, "").split()}
    return known | {host for host in told if host}


def test_heavy_dependencies_enter_at_their_doors() -> None:
    assert door_breaches(read_house(ROOT)) == []


def test_only_world_reads_the_variables_of_a_rank() -> None:
    assert rank_breaches(read_house(ROOT)) == []


def test_probing_never_reaches_deepspeed() -> None:
    modules = read_house(ROOT)
    assert any(name.startswith(PROBE) for name in modules)
    reached = packages_reached(modules, PROBE)
    assert "deepspeed" not in reached, f"by way of {reached['deepspeed']}"


def test_importing_the_pipeline_is_light() -> None:
    heavy = ["torch", "ray", "boto3", "botocore", "deepspeed", "webdataset", "pyarrow", "PIL", "matplotlib"]
    code = f"import sys, pipeline; print([name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


def test_no_file_names_this_machine_or_a_registry() -> None:
    hosts, found = registry_hosts(), {}
    for path in tracked_files(ROOT):
        try:
            leaks = leaks_in(path.read_text(encoding="utf-8"), hosts)
        except UnicodeDecodeError:
            continue
        if leaks and path != Path(__file__):
            found[str(path.relative_to(ROOT))] = leaks
    assert found == {}


def test_files_stay_small_and_none_is_an_attic() -> None:
    modules = read_house(ROOT)
    lengths = {str(module.path): len((ROOT / module.path).read_text().splitlines()) for module in modules.values()}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}
    assert [path for path in lengths if Path(path).stem in ("util", "utils", "helpers", "misc")] == []


PLANTED = {
    "ray on a wrong floor": {"pipeline/stream/x.py": "import ray.data"},
    "ray in a function": {"pipeline/models/x.py": "def f():\n    from ray import train\n"},
    "ray by name": {"pipeline/images/x.py": "import importlib\nimportlib.import_module('ray')"},
    "ray in two modules": {"pipeline/shard/a.py": "import ray", "pipeline/shard/b.py": "from ray.data import range"},
    "deepspeed beside the engine": {"pipeline/train/loop.py": "import deepspeed"},
    "deepspeed in jobs": {"jobs/x.py": "from deepspeed.ops import adam"},
    "webdataset in corpus": {"pipeline/corpus/x.py": "import webdataset as wds"},
    "boto3 for types": {"pipeline/shard/x.py": "if TYPE_CHECKING:\n    import boto3\n"},
    "botocore in infra": {"infra/local/x.py": "import botocore.session"},
    "boto3 beside s3.py": {"pipeline/base/store/s3.py": "import boto3", "pipeline/base/store/x.py": "import boto3"},
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_breach_is_caught(name: str, tmp_path: Path) -> None:
    assert len(door_breaches(plant(tmp_path, PLANTED[name]))) == 1


def test_open_doors_are_no_breach(tmp_path: Path) -> None:
    files = {
        "pipeline/shard/drive.py": "import ray\nimport ray.data\n",
        "pipeline/corpus/drive.py": "import ray\n",
        "pipeline/train/engine.py": "import deepspeed\n",
        "pipeline/train/workers.py": "def f():\n    import ray.train\n",
        "pipeline/stream/read.py": "import webdataset\n",
        "pipeline/base/store/s3.py": "import boto3\nfrom botocore import exceptions\n",
        "jobs/a.py": "import ray\n",
        "jobs/b.py": "import ray\nimport rayleigh\n",
    }
    assert door_breaches(plant(tmp_path, files)) == []


def test_a_planted_rank_is_caught(tmp_path: Path) -> None:
    files = {
        "pipeline/base/world.py": "import os\nos.environ['RANK']\n",
        "pipeline/train/x.py": "import os\nx = os.getenv('WORLD_SIZE', os.environ.get('LOCAL_RANK'))\n",
        "pipeline/train/y.py": '"""About RANK and WORLD_SIZE."""\nRANK = 1\n',
        "jobs/x.py": "import os\nos.environ['RANK']\n",
    }
    breaches = rank_breaches(plant(tmp_path, files))
    assert [breach.partition(" is read")[0] for breach in breaches] == [
        "pipeline/train/x.py:2: 'WORLD_SIZE'",
        "pipeline/train/x.py:2: 'LOCAL_RANK'",
    ]


def test_a_planted_way_from_probing_to_deepspeed_is_caught(tmp_path: Path) -> None:
    files = {
        "pipeline/evaluate/evaluators/knn.py": "from ..inspect import maps\n",
        "pipeline/evaluate/inspect/maps.py": "def f():\n    import pipeline.train.loop\n",
        "pipeline/train/loop.py": "import torch\n",
        "pipeline/train/__init__.py": "from . import engine\n",  # runs before pipeline.train.loop does
        "pipeline/train/engine.py": "import deepspeed\n",
    }
    modules = plant(tmp_path, files)
    assert packages_reached(modules, PROBE) == {"deepspeed": "pipeline.train.engine", "torch": "pipeline.train.loop"}
    assert "deepspeed" not in packages_reached(modules, "pipeline.base")


def test_planted_leaks_are_caught() -> None:
    hosts = registry_hosts()
    for text in ("open('/work/main/x')", "cd /root/x", "see /home/someone/x", "python /tmp/x/v/bin/python"):
        assert leaks_in(text, hosts), text
    for text in ("--index-url https://" + "py" + "pi.org/simple", "https://files.python" + "hosted.org/a.whl"):
        assert leaks_in(text, hosts), text
    for text in ("s3://bucket/work/x", "/workspace", "/home/ray/anaconda3", "tests/work/x", "~/work/x"):
        assert not leaks_in(text, hosts), text
