"""Which code made something: the release, and the commit when it runs from a checkout."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from pipeline import __version__


@cache
def code_version() -> str:
    """Like ``vitpipe 0.1.0 (1a2b3c4d5e6f)``, with ``+`` after the commit when files differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return f"vitpipe {__version__}"
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return f"vitpipe {__version__}"
    return f"vitpipe {__version__} ({commit}{'+' if changed else ''})"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
