"""Repeat requests that fail, for a while, at times that no two threads share."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.base.errors import FailedError, InterruptedRunError, StoreAccessError
from pipeline.base.store import KeyRefusedError, Store

_FIRST_SECONDS, _LONGEST_SECONDS = 0.2, 10.0
Result = TypeVar("Result")


class Patience:
    """Repeats what a store could not do just now. A folder's errors do not pass, so they are not waited for."""

    def __init__(self, store: Store, seconds: float, stopped: threading.Event) -> None:
        self._seconds = 0.0 if store.local_path("x") else seconds
        self._stopped = stopped

    def __call__(self, request: Callable[[], Result]) -> Result:
        """The result of *request*, which may be called many times. Raises its last error when patience ends."""
        deadline = time.monotonic() + self._seconds
        longest = _FIRST_SECONDS
        while True:
            try:
                return request()
            except KeyRefusedError:
                raise
            except (FailedError, StoreAccessError):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
            self._stopped.wait(random.uniform(0, min(longest, left)))
            self.check()
            longest = min(2 * longest, _LONGEST_SECONDS)

    def check(self) -> None:
        """Raise when the stage was stopped meanwhile."""
        if self._stopped.is_set():
            raise InterruptedRunError("the stage was stopped", "the same command goes on where it stopped")
