"""What is stored beside training: metrics, events, the audit. No store ends a run by refusing them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from pipeline.base.errors import FailedError, StoreAccessError

_AGAIN_SECONDS = 60.0  # after a refusal: a store that is away may take half a minute to say so, which training waits


class Patient:
    """Stores what can wait, and says once that it cannot, until it can again. What is not stored has to be kept.

    *around* is entered while training waits for the store.
    """

    def __init__(
        self, say: Callable[[str], None], around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._say, self._around = say, around
        self._refused: set[Callable[[], object]] = set()  # one that had nothing to store has not found out otherwise
        self._not_before = 0.0

    def insist(self) -> None:
        """Try the next time, however short ago the last refusal was."""
        self._not_before = 0.0

    def stored(self, flush: Callable[[], object]) -> bool:
        """Whether *flush* went well. After a refusal nothing is tried for a minute."""
        if time.monotonic() < self._not_before:
            return False
        try:
            with self._around():
                flush()
        except (FailedError, StoreAccessError, OSError) as error:  # OSError: of the folder for temporary files
            self._not_before = time.monotonic() + _AGAIN_SECONDS
            if not self._refused:
                what = getattr(error, "what", "") or f"{type(error).__name__}: {error}"
                self._say(f"metrics and audit are not stored for now, they are kept and training goes on: {what}")
            self._refused.add(flush)
            return False
        self._refused.discard(flush)
        return True
