"""The ledger in a store: claims are numbered and expire, a result is create-only.

So an evaluation is computed at least once and recorded exactly once, whoever dies, comes back or is started twice.
``records/ledger.py`` draws the files, ``ledger_view.py`` makes a value of them.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.base.errors import DamageError
from pipeline.base.process_identity import _place
from pipeline.base.retry import RetryPolicy, with_retry
from pipeline.base.store.protocol import ObjectInfo, Store
from pipeline.records.ledger import (
    LEDGER,
    Cancelled,
    Claim,
    Failure,
    Invalid,
    LedgerListing,
    Owner,
    Renewal,
    cancelled_key,
    ledger_key,
    read_marks,
)
from pipeline.records.record import Record, parse_record

Result = TypeVar("Result")

State = Literal["due", "waiting", "running", "done", "failed", "cancelled"]
CLOCK_SECONDS = 60.0  # by which the clocks of two hosts may differ
Bodies = Mapping[str, bytes]  # what was read, by key; what was gone by then is not in it
Kind = TypeVar("Kind", bound=Record)


@dataclass(frozen=True)
class EvaluationState:
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


LedgerView = Mapping[str, EvaluationState]


def wanted(marks: LedgerListing) -> list[ObjectInfo]:
    """What has to be read to know how it stands with an evaluation."""
    if marks.is_recorded:
        return []
    found = [marks.newest[kind][1] for kind in ("claim", "failure", "invalid") if kind in marks.newest]
    if "renew" in marks.newest and marks.number("renew") == marks.number("claim"):
        found.append(marks.newest["renew"][1])
    return found


def view_of(
    found: Mapping[str, LedgerListing], bodies: Bodies, is_gone: Callable[[Owner], bool]
) -> dict[str, EvaluationState]:
    """The view, by id. *is_gone*: true of an owner that is known to work no more."""
    return {evaluation_id: _entry(marks, bodies, is_gone) for evaluation_id, marks in found.items()}


def _entry(marks: LedgerListing, bodies: Bodies, is_gone: Callable[[Owner], bool]) -> EvaluationState:
    claims, generation = max(marks.number("claim"), 0), marks.generation
    entry = EvaluationState(generation, marks.is_recorded, claims)
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


def _read(kind: type[Kind], marks: LedgerListing, name: str, bodies: Bodies) -> Kind | None:
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


CLAIM_SECONDS = 180.0  # renewed each third of it, while the work goes on
MAX_LOSSES = 10  # workers or stores that went away from one evaluation: by then it may be what ends them
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 1.0, 300.0
_READERS = 16
_OWN_TOKEN = uuid.uuid4().hex
Ending = Literal["error", "refused", "lost", "released"]


def current_owner() -> Owner:
    """This process."""
    return Owner(place=_place(), pid=os.getpid(), token=f"{_OWN_TOKEN}-{os.getpid()}")


def is_gone(owner: Owner) -> bool:
    """True when *owner* was a process of this very place that is no longer there."""
    return owner.place == _place() and not Path(f"/proc/{owner.pid}").exists()


class Ledger:
    """The ledger as one process sees it: ``view`` by id and ``cancelled`` patterns, as of the last ``refresh``.

    What this process does itself is seen at once.
    """

    def __init__(self, workspace: Store, run: str, patience: RetryPolicy | None = None) -> None:
        self.view: dict[str, EvaluationState] = {}
        self.cancelled: tuple[str, ...] = ()
        self.owner = current_owner()
        self._workspace, self._run = workspace, run
        self._patience = patience or RetryPolicy(0)
        self._bodies: dict[tuple[str, str], bytes] = {}

    def refresh(self) -> None:
        """Look at everything: one listing, and reads of what is neither recorded nor untouched."""
        self.view = self._view(LEDGER)
        self.refresh_cancelled()

    def refresh_some(self, ids: Iterable[str]) -> None:
        """Look at a few evaluations."""
        for evaluation_id in ids:
            self.view |= self._view(f"{LEDGER}{evaluation_id}/")

    def refresh_cancelled(self) -> bool:
        """Read what is not wanted; True when that has changed."""
        before, (self.cancelled, _) = self.cancelled, self._read_cancelled()
        return before != self.cancelled

    def claim(self, evaluation_id: str, name: str) -> int | None:
        """Claim an evaluation that is due: the number of the claim, or None when somebody else was faster."""
        entry, now = self.view.get(evaluation_id, EvaluationState()), time.time()
        number = entry.claims + 1
        key = ledger_key(evaluation_id, "claim", number)
        mine = Claim(
            owner=self.owner,
            run=self._run,
            name=name,
            generation=entry.generation,
            since=now,
            expires=now + CLAIM_SECONDS,
        )
        if not self._do(key, lambda: self._workspace.put_if_absent(key, mine.to_json())):
            theirs = self._read_claim(key)
            if theirs != mine:  # ours, when the store's answer to the first try was lost
                expires = theirs.expires if theirs else now + CLAIM_SECONDS
                held = replace(entry, claims=number, claim=theirs or mine, expires=expires + CLOCK_SECONDS)
                self.view[evaluation_id] = held
                return None
        self.view[evaluation_id] = replace(entry, claims=number, claim=mine, expires=mine.expires + CLOCK_SECONDS)
        return number

    def holds(self, evaluation_id: str, claim: int, generation: int) -> bool:
        """True while our claim of that number stands: nobody has claimed since, recorded, or made its generation void.

        One that has expired stands until another follows it.
        """
        entry = self.view.get(evaluation_id, EvaluationState())
        return not entry.is_recorded and (entry.claims, entry.generation) == (claim, generation)

    def renew(self, evaluation_id: str) -> None:
        """Let our claim count from now on."""
        entry, expires = self.view[evaluation_id], time.time() + CLAIM_SECONDS
        key = ledger_key(evaluation_id, "renew", entry.claims)
        self._do(key, lambda: self._workspace.put(key, Renewal(expires=expires).to_json()))
        self.view[evaluation_id] = replace(entry, expires=expires + CLOCK_SECONDS)

    def end(self, evaluation_id: str, kind: Ending, reason: str, max_tries: int) -> Failure:
        """Say how the work of our claim ended without a result, and when it may be tried again, if ever."""
        entry, now = self.view[evaluation_id], time.time()
        errors = (entry.failure.errors if entry.failure else 0) + (kind in ("error", "refused"))
        losses = (entry.failure.losses if entry.failure else 0) + (kind == "lost")
        is_final = kind == "refused" or errors >= max_tries or losses >= MAX_LOSSES
        seconds = 0.0 if kind == "released" else retry_seconds(errors + losses)
        failure = Failure(
            kind=kind,
            run=self._run,
            name=entry.claim.name if entry.claim else "",
            reason=reason,
            errors=errors,
            losses=losses,
            at=now,
            retry_after=None if is_final else now + seconds,
        )
        key = ledger_key(evaluation_id, "failure", entry.claims)
        self._do(key, lambda: self._workspace.put(key, failure.to_json()))
        self.view[evaluation_id] = replace(entry, claim=None, failure=failure)
        return failure

    def recorded(self, evaluation_id: str) -> None:
        """The worker of our claim has recorded the result, or found it recorded."""
        self.view[evaluation_id] = replace(self.view[evaluation_id], is_recorded=True, claim=None)

    def invalidate(self, evaluation_id: str, reason: str) -> bool:
        """Make the result and the failures of an evaluation void; False when somebody else has just done so."""
        entry = self.view.get(evaluation_id, EvaluationState())
        by = f"{self.owner.place.partition(' ')[0]}:{self.owner.pid}"
        void = Invalid(reason=reason, by=by, claims=entry.claims, at=time.time())
        key = ledger_key(evaluation_id, "invalid", entry.generation)
        done = self._do(key, lambda: self._workspace.put_if_absent(key, void.to_json()))
        self.view[evaluation_id] = EvaluationState(generation=entry.generation + 1, claims=entry.claims)
        return done

    def change_cancelled(self, change: Callable[[tuple[str, ...]], Sequence[str]]) -> tuple[str, ...]:
        """Put what *change* makes of the patterns that are not wanted in their place; those."""
        key = cancelled_key(self._run)
        while True:
            before, info = self._read_cancelled()
            after = tuple(dict.fromkeys(change(before)))
            data = Cancelled(patterns=after).to_json()
            done = (
                self._workspace.put_if_absent(key, data)
                if info is None
                else self._workspace.put_if_match(key, data, info.etag)
            )
            if done:
                self.cancelled = after
                return after

    def _view(self, prefix: str) -> dict[str, EvaluationState]:
        found = self._do(prefix, lambda: read_marks(self._workspace.list(prefix)))
        needed = [info for marks in found.values() for info in wanted(marks)]
        missing = [info for info in needed if (info.key, info.etag) not in self._bodies]
        if missing:
            with ThreadPoolExecutor(min(_READERS, len(missing))) as readers:
                for info, body in zip(missing, readers.map(self._read, missing), strict=True):
                    if body is not None:
                        self._bodies[info.key, info.etag] = body
        return view_of(found, bodies_of(needed, self._bodies), is_gone)

    def _read(self, info: ObjectInfo) -> bytes | None:
        try:
            return self._do(info.key, lambda: self._workspace.read(info.key))
        except FileNotFoundError:
            return None

    def _read_claim(self, key: str) -> Claim | None:
        try:
            return parse_record(Claim, self._do(key, lambda: self._workspace.read(key)), key)
        except (FileNotFoundError, DamageError):
            return None

    def _read_cancelled(self) -> tuple[tuple[str, ...], ObjectInfo | None]:
        """The patterns, and the object as it was before it was read: put_if_match with it finds any change."""
        key = cancelled_key(self._run)
        info = self._do(key, lambda: self._workspace.head(key))
        if info is None:
            return (), None
        try:
            return parse_record(Cancelled, self._do(key, lambda: self._workspace.read(key)), key).patterns, info
        except FileNotFoundError:
            return (), None

    def _do(self, what: str, request: Callable[[], Result]) -> Result:
        return with_retry(self._workspace, self._patience, what, request)


def retry_seconds(tries: int) -> float:
    """How long to wait after the *tries*-th try: doubling, and never two at the same moment."""
    longest = min(_FIRST_RETRY_SECONDS * 2.0 ** (tries - 1), _LONGEST_RETRY_SECONDS)
    return random.uniform(0.5, 1.0) * longest
