"""Whether the head of a Ray cluster takes connections. A minute after it went away Ray ends a process, wordlessly."""

from __future__ import annotations

import socket
import time

from pipeline.base.errors import InterruptedRunError

_ANSWER_SECONDS = 2.0  # in which a head that is there has taken a connection


class ClusterHead:
    """The head at *address*, HOST:PORT, which may be away for *patience_seconds*."""

    def __init__(self, address: str, patience_seconds: float) -> None:
        self.address, self._patience_seconds = address, patience_seconds
        self._since: float | None = None

    @property
    def is_away(self) -> bool:
        """True when it did not answer at the last look."""
        return self._since is not None

    def check(self) -> str:
        """Look: a message when that has changed, else "". Raises InterruptedRunError when it is away for too long."""
        was_away, now = self.is_away, time.monotonic()
        self._since = None if self.answers() else self._since or now
        if self._since is not None and now - self._since >= self._patience_seconds:
            raise InterruptedRunError(
                f"the head of the Ray cluster at {self.address} went away",
                "what is recorded stays; on a cluster that is up the same command goes on",
            )
        if was_away == self.is_away:
            return ""
        if self.is_away:
            patience = f"{self._patience_seconds:g} s"
            return f"the head of the cluster at {self.address} does not answer; it is waited for {patience}"
        return f"the head of the cluster at {self.address} is back"

    def answers(self) -> bool:
        """Whether it takes a connection now."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS):
                return True
        except OSError:
            return False
