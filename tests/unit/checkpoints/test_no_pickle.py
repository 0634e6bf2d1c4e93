"""Nothing in pipeline/checkpoints can load a pickle: it imports nothing that could, and calls no torch.load."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pipeline.checkpoints

_LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "deepspeed", "subprocess"}
_CALLS = {"torch.load", "torch.jit.load", "np.load", "numpy.load", "eval", "exec"}


def loaders_in(source: str) -> list[str]:
    """What in *source* could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in _LOADERS]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in _LOADERS or name in _CALLS]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _CALLS:
            found.append(ast.unparse(node.func))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


def test_no_checkpoint_code_can_load_a_pickle() -> None:
    sources = sorted(Path(pipeline.checkpoints.__file__).parent.rglob("*.py"))
    assert len(sources) >= 10
    assert {path.name: found for path in sources if (found := loaders_in(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import torch\n    torch.load('x')",
        "from torch import load as thing",
        "import numpy as np\nnp.load('x')",
        "f(allow_pickle=True)",
        "import deepspeed.runtime",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert loaders_in(source)
