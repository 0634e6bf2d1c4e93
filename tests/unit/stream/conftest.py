"""A small dataset, made once for the tests that only read it."""

from __future__ import annotations

import pytest

from pipeline.base.store import Store, open_store
from tests.support.datasets import make_dataset


@pytest.fixture(scope="session")
def tiny_workspace(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A workspace with dataset ``tiny``: 50 images of 4 classes in four shards. Not to be changed."""
    workspace = open_store(str(tmp_path_factory.mktemp("tiny")))
    make_dataset(workspace, "tiny", num_samples=50, num_classes=4, size=16, max_samples=13)
    return workspace
