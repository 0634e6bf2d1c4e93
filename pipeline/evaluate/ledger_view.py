"""The ledger as a value: how it stands with each evaluation, from one listing and a few small reads. Pure.

A recorded evaluation costs no read, one that nobody has touched no file at all; of the others the newest claim, its
renewal, the newest failure and the newest invalidation are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from pipeline.base.errors import DamageError
from pipeline.base.store import ObjectInfo
from pipeline.records.ledger import Claim, Failure, Invalid, Marks, Owner, Renewal
from pipeline.records.record import Record, parse_record

State = Literal["due", "waiting", "running", "done", "failed", "cancelled"]
CLOCK_SECONDS = 60.0  # by which the clocks of two hosts may differ

Bodies = Mapping[str, bytes]  # what was read, by key; what was gone by then is not in it
Kind = TypeVar("Kind", bound=Record)


@dataclass(frozen=True)
class Entry:
    """One evaluation: its generation, whether that is recorded, how many claims there were, and the last one's fate.

    *claim* is None when it has ended, or belongs to an earlier generation; so is *failure*.
    """

    generation: int = 0
    is_recorded: bool = False
    claims: int = 0
    claim: Claim | None = None
    expires: float = 0.0
    failure: Failure | None = None

    def state(self, now: float) -> State:
        """How it stands at *now*: ``waiting`` is for the time of the next try."""
        if self.is_recorded:
            return "done"
        if self.claim is not None and now < self.expires:
            return "running"
        if self.failure is None:
            return "due"
        if self.failure.retry_after is None:
            return "failed"
        return "waiting" if now < self.failure.retry_after else "due"


LedgerView = Mapping[str, Entry]


def wanted(marks: Marks) -> list[ObjectInfo]:
    """What has to be read to know how it stands with an evaluation."""
    if marks.is_recorded:
        return []
    found = [marks.newest[kind][1] for kind in ("claim", "failure", "invalid") if kind in marks.newest]
    if "renew" in marks.newest and marks.number("renew") == marks.number("claim"):
        found.append(marks.newest["renew"][1])
    return found


def view_of(found: Mapping[str, Marks], bodies: Bodies, is_gone: Callable[[Owner], bool]) -> dict[str, Entry]:
    """The view, by id. *is_gone*: true of an owner that is known to work no more."""
    return {evaluation_id: _entry(marks, bodies, is_gone) for evaluation_id, marks in found.items()}


def _entry(marks: Marks, bodies: Bodies, is_gone: Callable[[Owner], bool]) -> Entry:
    claims, generation = max(marks.number("claim"), 0), marks.generation
    entry = Entry(generation, marks.is_recorded, claims)
    if marks.is_recorded:
        return entry
    invalid = _read(Invalid, marks, "invalid", bodies)
    first = invalid.claims if invalid else 0  # claims up to here, and their failures, are of earlier generations
    failed = marks.number("failure")
    if failed > first:
        entry = replace(entry, failure=_read(Failure, marks, "failure", bodies))
    claim = _read(Claim, marks, "claim", bodies) if claims > max(first, failed) else None
    if claim is None or claim.generation != generation or is_gone(claim.owner):
        return entry
    renewal = _read(Renewal, marks, "renew", bodies) if marks.number("renew") == claims else None
    return replace(entry, claim=claim, expires=(renewal.expires if renewal else claim.expires) + CLOCK_SECONDS)


def _read(kind: type[Kind], marks: Marks, name: str, bodies: Bodies) -> Kind | None:
    """A damaged record counts for none: then the work is done once more, and still recorded once."""
    if name not in marks.newest:
        return None
    key = marks.newest[name][1].key
    try:
        return parse_record(kind, bodies[key], key)
    except (KeyError, DamageError):
        return None


def bodies_of(infos: Iterable[ObjectInfo], cache: Mapping[tuple[str, str], bytes]) -> dict[str, bytes]:
    """What *cache* holds of *infos*, by key and etag."""
    return {info.key: cache[info.key, info.etag] for info in infos if (info.key, info.etag) in cache}
