"""Progress: how far long work is, and messages about it. Stages get one; the command decides how it looks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives progress of one piece of work at a time."""

    def start(self, label: str, total: int | None = None) -> None:
        """Begin a piece of work of *total* units (None: unknown)."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """*count* more units are done; *note* is shown beside the bar."""

    def finish(self, note: str = "") -> None:
        """The piece of work is done."""

    def message(self, text: str) -> None:
        """One line for the log."""


class Silent:
    """A Progress that shows nothing; for library use and tests."""

    def start(self, label: str, total: int | None = None) -> None:
        """Show nothing."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Show nothing."""

    def finish(self, note: str = "") -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""
