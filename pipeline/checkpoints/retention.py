"""Leases on steps, which steps are removed, and how, without hurting a reader; files that no card lists.

Kept are the newest steps, each n-th, step 0 (the untrained network, to which evaluation compares), those with a lease,
and always the newest complete one. With ``keep_last=1`` a newest one that goes bad later has nothing to fall back to.

A lease on steps is stored as ``pins/<owner>.json``: put by its owner's name, for a time or for ever.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.base.errors import DamageError, InputError
from pipeline.base.failpoints import fail_point
from pipeline.base.lease import Lease, release, renew
from pipeline.base.store.protocol import ObjectInfo, Orphan, Store
from pipeline.checkpoints.card import check_complete, list_attempts
from pipeline.records.record import Record, parse_record
from pipeline.records.run import (
    RETIRED,
    CheckpointCard,
    RunCard,
    checkpoint_card_key,
    list_checkpoint_cards,
    list_steps,
    parse_checkpoint_card,
    parse_reference,
    read_checkpoint_card,
    run_prefix,
    step_prefix,
)

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WRITTEN = re.compile(r"step-(\d{8,})/(\d{4,})/([^/]+)")  # step, attempt, file


class StepLease(Record):
    """*steps* that its owner needs until *expires*, seconds since 1970 (None: for ever). The file is named after it."""

    steps: tuple[int, ...]
    expires: float | None

    @property
    def lease(self) -> Lease:
        """The lease that it is; its holder is no process."""
        return Lease(expires=self.expires)


def hold_steps(workspace: Store, run: str, steps: Iterable[int], owner: str, seconds: float | None) -> list[int]:
    """Keep *steps* of *run* for *seconds* (None: until released); those of them that are there.

    The owner's earlier lease is replaced: so this is also how it gets other steps.
    """
    needed = tuple(sorted(set(steps)))
    expires = None if seconds is None else time.time() + seconds
    renew(workspace, _key(run, owner), StepLease(steps=needed, expires=expires).to_json())
    return sorted(set(needed) & set(list_steps(workspace, run)))


def renew_steps(workspace: Store, run: str, owner: str, seconds: float) -> list[int]:
    """Let the owner's lease count from now on for *seconds*; its steps that are there. Without a lease: none."""
    try:
        existing = parse_record(StepLease, workspace.read(_key(run, owner)), _key(run, owner))
    except FileNotFoundError:
        return []
    return hold_steps(workspace, run, existing.steps, owner, seconds)


def release_steps(workspace: Store, run: str, owner: str) -> None:
    """The owner needs nothing any more."""
    release(workspace, _key(run, owner))


def pin_fork(workspace: Store, parent: str, child: str) -> None:
    """Keep *parent* (RUN@STEP) for ever for the run *child*. Raises InputError when it is not there.

    Call it before the child's ``run.json`` is made; ``resume`` does it again.
    """
    run, step = parse_reference(parent)
    read_checkpoint_card(workspace, run, step)
    if step not in hold_steps(workspace, run, [step], f"fork-{child}", None):
        raise InputError(f"checkpoint {parent} was removed just now", "fork from another one")


def held_steps(workspace: Store, run: str) -> set[int]:
    """Steps that somebody needs now: those of the live leases.

    A lease that cannot be read counts for all steps, so that nothing is removed that it may be about.
    """
    now, steps = time.time(), set()
    for info in list(workspace.list(f"{run_prefix(run)}/pins/")):
        try:
            existing = parse_record(StepLease, workspace.read(info.key), info.key)
        except FileNotFoundError:
            continue
        except DamageError:
            steps |= set(list_steps(workspace, run))
            continue
        if existing.lease.is_live(now):
            steps |= set(existing.steps)
    return steps


def forked_steps(workspace: Store, run: str) -> set[int]:
    """Steps of *run* that other runs name as their parent. It lists all runs: do not call it often."""
    steps = set()
    for info in list(workspace.list("runs/")):
        if info.key.endswith("/run.json") and info.key.count("/") == 2:
            try:
                parent = parse_record(RunCard, workspace.read(info.key), info.key).parent
            except DamageError:
                continue  # the lease of that fork counts all the same
            if parent is not None and parse_reference(parent)[0] == run:
                steps.add(parse_reference(parent)[1])
    return steps


def _key(run: str, owner: str) -> str:
    if not _OWNER.fullmatch(owner):
        raise InputError(f"{owner!r} cannot own a pin", "letters, digits, '.', '_' and '-'")
    return f"{run_prefix(run)}/pins/{owner}.json"


@dataclass(frozen=True)
class Retention:
    """Keep the ``keep_last`` newest steps (0: all), and those that ``keep_every`` divides (0: no more)."""

    keep_last: int = 0
    keep_every: int = 0

    def superfluous(self, steps: list[int]) -> list[int]:
        """Which of *steps* nothing but a lease keeps. A pure function."""
        if self.keep_last <= 0:
            return []
        old = sorted(steps)[: -self.keep_last]
        return [step for step in old if step and not (self.keep_every and step % self.keep_every == 0)]


def apply_retention(workspace: Store, run: str, retention: Retention) -> list[int]:
    """Remove what *retention* does not keep and nobody needs; the steps that were removed."""
    steps = list_steps(workspace, run)
    chosen = retention.superfluous(steps)
    if not chosen:
        return []
    retained = held_steps(workspace, run) | forked_steps(workspace, run) | {_newest_complete(workspace, run, steps)}
    return [step for step in chosen if step not in retained and _retire(workspace, run, step)]


def _newest_complete(workspace: Store, run: str, steps: list[int]) -> int:
    """-1 when none is."""
    for step in reversed(steps):
        try:
            card = read_checkpoint_card(workspace, run, step)
        except DamageError:
            continue
        if check_complete(workspace, card) is None:
            return step
    return -1


def _retire(workspace: Store, run: str, step: int) -> bool:
    """Keep the card's text as ``retired.json``, remove the card, then, if still nobody needs the step, its files.

    Killed anywhere in between, it leaves a checkpoint, or files without a card, which a later sweep removes.
    """
    key = checkpoint_card_key(run, step)
    data = workspace.read(key)
    try:
        card = parse_checkpoint_card(data, run, step, key)
    except DamageError:
        return False  # nobody knows what belongs to it; the next resume quarantines it
    workspace.put(f"{step_prefix(run, step)}/{RETIRED}", data)
    fail_point("checkpoint.before-retire")
    workspace.delete(key)
    fail_point("checkpoint.in-retire")
    if step in held_steps(workspace, run):
        workspace.put_if_absent(key, data)
        return False
    for file in card.every_file:
        workspace.delete(f"{step_prefix(run, step)}/{file.name}")
        fail_point("checkpoint.in-retire-files")
    return True


def find_orphans(workspace: Store, run: str) -> Iterator[Orphan]:
    """Files of *run*'s checkpoints that no card lists, and that no attempt is about to list.

    Raises DamageError when a card cannot be read: nobody knows then what belongs to it.
    """
    prefix = f"{run_prefix(run)}/checkpoints/"
    written = [(info, parts) for info in list(workspace.list(prefix)) if (parts := _parse_key(prefix, info))]
    cards = {card.step: card for card in list_checkpoint_cards(workspace, run)}  # after the files: none is missed
    attempts = list_attempts(workspace, run)
    newest = attempts[-1] if attempts else ""
    committed = max((card.step for card in cards.values() if card.attempt == newest), default=-1)
    leased = held_steps(workspace, run)
    for info, (step, attempt, name) in written:
        is_ahead = attempt == newest and step >= committed
        if step not in leased and not is_ahead and not _is_listed(cards.get(step), f"{attempt}/{name}"):
            why = f"attempt {attempt} did not commit it" if step not in cards else "the step's card does not list it"
            yield Orphan(info.key, info.num_bytes, why)


def _parse_key(prefix: str, info: ObjectInfo) -> tuple[int, str, str] | None:
    """(step, attempt, file) of what an attempt wrote; None for anything else."""
    match = _WRITTEN.fullmatch(info.key.removeprefix(prefix))
    return (int(match[1]), match[2], match[3]) if match else None


def _is_listed(card: CheckpointCard | None, name: str) -> bool:
    return card is not None and any(file.name == name for file in card.every_file)
