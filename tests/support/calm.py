"""One undisturbed run of the small chain, which tests look at and compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import run_small


@dataclass(frozen=True)
class Calm:
    """Where the undisturbed run is, and its summary."""

    workspace: Path
    out: Path
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    summary = run_small(folder / "workspace", folder)
    return Calm(folder / "workspace", folder, summary)
