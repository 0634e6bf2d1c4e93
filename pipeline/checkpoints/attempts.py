"""Numbered attempts of a run. A number is taken create-only; only the newest attempt may commit a checkpoint."""

from __future__ import annotations

from pipeline.base.errors import SupersededError
from pipeline.base.store import Store
from pipeline.records.run import run_prefix


def take_attempt(workspace: Store, run: str) -> str:
    """Take the next number, like ``"0003"``."""
    number = max((int(name) for name in list_attempts(workspace, run)), default=0) + 1
    while not workspace.put_if_absent(f"{run_prefix(run)}/attempts/{number:04d}.json", b"{}\n"):
        number += 1
    return f"{number:04d}"


def list_attempts(workspace: Store, run: str) -> list[str]:
    """All numbers taken so far, in order."""
    names = (info.key.rpartition("/")[2] for info in workspace.list(f"{run_prefix(run)}/attempts/"))
    return sorted(name.removesuffix(".json") for name in names)


def check_newest(workspace: Store, run: str, attempt: str) -> None:
    """Raise SupersededError when a newer attempt of the run has begun."""
    newest = list_attempts(workspace, run)[-1]
    if newest != attempt:
        raise SupersededError(f"attempt {attempt} of run {run} was superseded by attempt {newest}; it commits nothing")
