"""Pins: steps of a run that somebody needs, so that retention and ``vitpipe gc`` leave them alone.

    runs/<run>/pins/<owner>.json     {"steps": [...], "expires": seconds since 1970, or null: for ever}

Pin first, look afterwards: ``pin`` returns the steps that have a card once the pin is there. Retention removes a card
first, looks at the pins once more, and puts the card back if the step is pinned by then; files go last. So either the
pin is seen, or the step is known to be gone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store
from pipeline.records.record import Record, parse_record
from pipeline.records.run import RunCard, list_steps, parse_reference, read_checkpoint_card, run_prefix

_CLOCK_SECONDS = 60.0  # by which the clocks of two hosts may differ
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Pin(Record):
    """Who needs which steps is told by the file's name; *expires* None: for ever."""

    steps: tuple[int, ...]
    expires: float | None


def pin(workspace: Store, run: str, steps: Iterable[int], owner: str, seconds: float | None) -> list[int]:
    """Keep *steps* of *run* for *seconds* (None: until released); those of them that are there.

    A pin of the same owner is replaced: so this is also how a pin gets other steps.
    """
    wanted = tuple(sorted(set(steps)))
    expires = None if seconds is None else time.time() + seconds
    workspace.put(_key(run, owner), Pin(steps=wanted, expires=expires).to_json())
    return sorted(set(wanted) & set(list_steps(workspace, run)))


def renew(workspace: Store, run: str, owner: str, seconds: float) -> list[int]:
    """Let the owner's pin count from now on for *seconds*; the steps that are there. None pinned: none."""
    try:
        theirs = parse_record(Pin, workspace.read(_key(run, owner)), _key(run, owner))
    except FileNotFoundError:
        return []
    return pin(workspace, run, theirs.steps, owner, seconds)


def release(workspace: Store, run: str, owner: str) -> None:
    """The owner needs nothing any more."""
    workspace.delete(_key(run, owner))


def pin_fork(workspace: Store, parent: str, child: str) -> None:
    """Keep *parent* (RUN@STEP) for ever for the run *child*. Raises InputError when it is not there.

    Call it before the child's ``run.json`` is made; ``resume`` does it again.
    """
    run, step = parse_reference(parent)
    read_checkpoint_card(workspace, run, step)
    if step not in pin(workspace, run, [step], f"fork-{child}", None):
        raise InputError(f"checkpoint {parent} was removed just now", "fork from another one")


def pinned_steps(workspace: Store, run: str) -> set[int]:
    """Steps that somebody needs now: those of the pins that count.

    A pin that cannot be read counts for all steps, so that nothing is removed that it may be about.
    """
    now, found = time.time() - _CLOCK_SECONDS, set()
    for info in list(workspace.list(f"{run_prefix(run)}/pins/")):
        try:
            theirs = parse_record(Pin, workspace.read(info.key), info.key)
        except FileNotFoundError:
            continue
        except DamageError:
            found |= set(list_steps(workspace, run))
            continue
        if theirs.expires is None or theirs.expires > now:
            found |= set(theirs.steps)
    return found


def forked_steps(workspace: Store, run: str) -> set[int]:
    """Steps of *run* that other runs say they were forked from. Lists all runs, so it is not for every moment."""
    steps = set()
    for info in list(workspace.list("runs/")):
        if info.key.endswith("/run.json") and info.key.count("/") == 2:
            try:
                parent = parse_record(RunCard, workspace.read(info.key), info.key).parent
            except DamageError:
                continue  # the pin of that fork counts all the same
            if parent is not None and parse_reference(parent)[0] == run:
                steps.add(parse_reference(parent)[1])
    return steps


def _key(run: str, owner: str) -> str:
    if not _OWNER.fullmatch(owner):
        raise InputError(f"{owner!r} cannot own a pin", "letters, digits, '.', '_' and '-'")
    return f"{run_prefix(run)}/pins/{owner}.json"
