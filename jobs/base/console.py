"""What a person sees: progress on stderr (bars on a terminal, plain lines elsewhere), results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.base.units import format_seconds

_PLAIN_SECONDS = 10.0  # between two lines about the same work
_PLAIN_WIDTH = 160  # columns of a table where stdout is no terminal


class Bars:
    """Progress as bars, for a terminal."""

    def __init__(self) -> None:
        columns = [
            TextColumn("[bold]{task.description:<28}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        self._console = Console(stderr=True)
        self._columns = columns
        self._progress: Progress | None = None

    def start(self, label: str, total: int | None = None) -> None:
        """See Progress."""
        self.finish()
        self._progress = Progress(*self._columns, console=self._console)
        self._progress.start()
        self._task = self._progress.add_task(label, total=total, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        """See Progress."""
        if self._progress is not None:
            self._progress.update(self._task, advance=count, note=note)

    def finish(self, note: str = "") -> None:
        """See Progress."""
        if self._progress is not None:
            self._progress.update(self._task, note=note)
            self._progress.stop()
            self._progress = None

    def message(self, text: str) -> None:
        """See Progress."""
        self._console.print(text, highlight=False, markup=False)


class Lines:
    """Progress as plain lines, for logs: one at the start, one each ten seconds, one at the end."""

    def __init__(self) -> None:
        self._label = ""

    def start(self, label: str, total: int | None = None) -> None:
        """See Progress."""
        self._label, self._total, self._done = label, total, 0
        self._started = self._printed = time.monotonic()
        self._note = ""

    def advance(self, count: int = 1, note: str = "") -> None:
        """See Progress."""
        self._done += count
        self._note = note or self._note
        if time.monotonic() - self._printed > _PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._print_state()

    def finish(self, note: str = "") -> None:
        """See Progress."""
        if self._label:
            self._note = note or self._note
            self._print_state(f" in {format_seconds(time.monotonic() - self._started)}")
            self._label = ""

    def message(self, text: str) -> None:
        """See Progress."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def _print_state(self, suffix: str = "") -> None:
        of = f"/{self._total}" if self._total else ""
        self.message(f"{self._label}: {self._done}{of}{suffix}" + (f" ({self._note})" if self._note else ""))


def make_progress() -> Bars | Lines:
    """Bars on a terminal, else lines."""
    return Bars() if sys.stderr.isatty() else Lines()


def print_result(as_json: bool, result: dict[str, Any], show: Callable[[], None]) -> None:
    """With --json print *result* as one JSON object on stdout, else call *show*, which prints it for people."""
    if as_json:
        print(json.dumps(result, indent=2, sort_keys=True, default=str))  # noqa: T201
    else:
        show()


def print_text(text: str) -> None:
    """A line of the result for people, on stdout."""
    print(text)  # noqa: T201


def print_note(text: str) -> None:
    """A line about the command itself, on stderr: no part of the result, and no error."""
    print(f"note: {text}", file=sys.stderr)  # noqa: T201


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on stdout; no cell is read as markup."""
    table = Table(*columns, title=Text(title), title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(table)
