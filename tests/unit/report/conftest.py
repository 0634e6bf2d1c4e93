"""The made-up run and its report, made once for the tests that only read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.progress import Silent
from pipeline.base.store import Store
from pipeline.report.stage import build_report
from tests.support.example_run import RUN, build_example


@dataclass(frozen=True)
class Built:
    """A workspace, the summary of its report, and the text of its page."""

    store: Store
    summary: dict[str, Any]
    page: str


def report(store: Store) -> Built:
    """Build the report of the made-up run in *store*."""
    summary = build_report(store, RUN, name="first", code_version="0.1.0+test", progress=Silent())
    return Built(store, summary, store.read("reports/first/report.html").decode())


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The report of the whole example; do not write into its workspace."""
    root: Path = tmp_path_factory.mktemp("example")
    return report(build_example(root))
