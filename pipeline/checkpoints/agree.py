"""Ranks that do something each for itself and then have to go on together: what one meets, all are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pipeline.base.collective import Collective
from pipeline.base.errors import DamageError, FailedError

Value = TypeVar("Value")
_DAMAGE = (DamageError, FileNotFoundError)


def together(collective: Collective, action: Callable[[], Value]) -> tuple[list[Value], list[str]]:
    """*action* on every rank: (what each returned, what was found damaged), the same on every rank.

    Any other error of one rank is raised on all, so that none waits for another that has left.
    """
    outcome: Value | BaseException
    try:
        outcome = action()
    except Exception as error:
        outcome = _portable(error)
    outcomes = collective.gather(outcome)
    hard = [found for found in outcomes if isinstance(found, Exception) and not isinstance(found, _DAMAGE)]
    if hard:
        raise hard[0]
    damages = [str(found) for found in outcomes if isinstance(found, _DAMAGE)]
    values = [found for found in outcomes if not isinstance(found, Exception)]
    return values, list(dict.fromkeys(damages))


def from_first(collective: Collective, action: Callable[[], Value]) -> tuple[Value | None, list[str]]:
    """*action* on rank 0: (what it returned, what it found damaged), on every rank. Its error is raised on all."""
    outcome: Value | BaseException | None = None
    if collective.world.is_first:
        try:
            outcome = action()
        except Exception as error:
            outcome = _portable(error)
    outcome = collective.broadcast(outcome)
    if isinstance(outcome, _DAMAGE):
        return None, [str(outcome)]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, []  # type: ignore[return-value]


def _portable(error: Exception) -> Exception:
    """*error*, or one of ours that says the same when it may not survive the way to another process."""
    known = type(error).__module__.startswith(("pipeline.", "builtins"))
    return error if known else FailedError(f"{type(error).__name__}: {error}")
