"""The way into every command: errors become one line and an exit code. And which code runs, for cards and pages."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import typer

from pipeline import __version__
from pipeline.base.errors import FailedError, InterruptedRunError, VitpipeError

_WAY_ON = "the same command goes on where it stopped"  # after an interruption


def new_app(**settings: Any) -> typer.Typer:
    """An app that looks like all of vitpipe's; *settings* are typer's."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def as_app(command: typer.Typer | Callable[..., None]) -> typer.Typer:
    """A command's function as an app of its own; an app as it is."""
    if isinstance(command, typer.Typer):
        return command
    app = new_app()
    app.command()(command)
    return app


def main(command: typer.Typer | Callable[..., None], arguments: list[str] | None = None) -> None:
    """Run *command* and end the process with its exit code; *arguments* precede those of the process.

    An error of ours is one line for each of its messages; a traceback comes with ``--debug`` only.
    """
    signal.signal(signal.SIGTERM, _raise_interrupted)
    command_line = [*(arguments or []), *sys.argv[1:]]
    debug = "--debug" in command_line
    try:
        code = as_app(command)(command_line, standalone_mode=False)
    except KeyboardInterrupt:
        code = _print_error(InterruptedRunError("interrupted", _WAY_ON), debug)
    except VitpipeError as error:
        code = _print_error(error, debug)
    except Exception as error:
        code = _print_foreign_error(error, debug)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)


def _raise_interrupted(_number: int, _frame: object) -> None:
    raise InterruptedRunError("stopped by SIGTERM", _WAY_ON)


def _print_error(error: VitpipeError, debug: bool) -> int:
    if debug:
        sys.excepthook(type(error), error, error.__traceback__)
    for line in str(error).splitlines():
        print(f"vitpipe: {line}", file=sys.stderr)  # noqa: T201
    return error.exit_code


def _print_foreign_error(error: Exception, debug: bool) -> int:
    """An error that is not ours. Typer carries a click of its own, so usage errors are known by what they can do."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    if type(error).__name__ == "Abort":
        return _print_error(InterruptedRunError("interrupted", _WAY_ON), debug)
    if debug:
        raise error
    return _print_error(FailedError(f"{type(error).__name__}: {error}", "add --debug to see where"), debug)


@cache
def code_version() -> str:
    """Like ``vitpipe 0.1.0 (1a2b3c4d5e6f)``, with ``+`` after the commit when files differ from it."""
    root = Path(__file__).resolve().parents[2]
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
