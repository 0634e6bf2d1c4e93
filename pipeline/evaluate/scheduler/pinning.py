"""The checkpoints that are still to be read are pinned, so that retention leaves them alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from pipeline.base.store import Store
from pipeline.checkpoints.pins import pin, release, renew
from pipeline.evaluate.ledger import patiently
from pipeline.stream.waiting import Patience

Result = TypeVar("Result")
PIN_SECONDS = 600.0  # renewed each third of it; who dies holds nothing for longer


class Pinning:
    """The pin of one scheduler on a run. A checkpoint is pinned while any evaluation of it is not done."""

    def __init__(self, workspace: Store, run: str, owner: str, patience: Patience) -> None:
        self._workspace, self._run, self._owner, self._patience = workspace, run, owner, patience
        self._steps: set[int] = set()
        self._renewed = 0.0

    def hold(self, steps: Iterable[int]) -> set[int]:
        """Pin exactly *steps*; those of them that are gone."""
        wanted = set(steps)
        if wanted == self._steps:
            return set()
        if not wanted:
            self.release()
            return set()
        there = self._do(lambda: pin(self._workspace, self._run, wanted, self._owner, PIN_SECONDS))
        self._steps, self._renewed = wanted, time.monotonic()
        return wanted - set(there)

    def keep(self) -> None:
        """Renew the pin, if it is time to."""
        if self._steps and time.monotonic() - self._renewed > PIN_SECONDS / 3:
            self._renewed = time.monotonic()
            self._do(lambda: renew(self._workspace, self._run, self._owner, PIN_SECONDS))

    def release(self) -> None:
        """Nothing is needed any more."""
        if self._steps:
            self._do(lambda: release(self._workspace, self._run, self._owner))
            self._steps = set()

    def _do(self, request: Callable[[], Result]) -> Result:
        return patiently(self._workspace, self._patience, f"runs/{self._run}/pins/{self._owner}.json", request)
