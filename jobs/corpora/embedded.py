"""``embedded://NAME/SPLIT``: corpora without a network, copied into the workspace for every node to read."""

from __future__ import annotations

import importlib.resources
import tempfile
from pathlib import Path

from jobs.corpora.digits import write_digits
from jobs.corpora.layout import TEST_FILE, TRAIN_FILE
from pipeline.base.errors import InputError
from pipeline.base.store import Store

_SCHEME = "embedded://"
_FILES = {"train": TRAIN_FILE, "test": TEST_FILE}
NAMES = ("fashion-mnist", "digits")


def resolve_source(source: str, workspace: Store) -> str:
    """*source*, or for an embedded corpus the URI of its copy below ``corpora/`` of the workspace."""
    if not source.startswith(_SCHEME):
        return source
    name, _, split = source.removeprefix(_SCHEME).partition("/")
    if name not in NAMES or split not in _FILES:
        known = ", ".join(f"{_SCHEME}{known}/{part}" for known in NAMES for part in _FILES)
        raise InputError(f"no embedded corpus {source}", f"there are: {known}")
    key = f"corpora/{name}/{_FILES[split]}"
    if workspace.head(key) is None:
        _copy(name, workspace)
    return f"{workspace.uri}/{key}"


def _copy(name: str, workspace: Store) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if name == "digits":
            write_digits(folder)
        else:
            folder = Path(str(importlib.resources.files("jobs.corpora.fashion_mnist")))
        for file in _FILES.values():
            workspace.put(f"corpora/{name}/{file}", (folder / file).read_bytes())
