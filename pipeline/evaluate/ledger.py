"""The ledger of evaluations in a store: claims are numbered leases that expire, a result is create-only.

So an evaluation is computed at least once and recorded exactly once, whoever dies, comes back or is started twice.
``records/ledger.py`` draws the files. ``build_view`` turns a listing of them and the few bodies that matter into the
state of each evaluation; ``Ledger`` reads and writes them for one process.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from pipeline.base.errors import DamageError
from pipeline.base.lease import CLOCK_SKEW_SECONDS, renew, take
from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.retry import RetryPolicy, backoff, with_retry
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
    parse_listing,
)
from pipeline.records.record import Record, parse_record

CLAIM_SECONDS = 180.0  # renewed each third of it, while the work goes on
MAX_LOSSES = 10  # workers or stores that went away from one evaluation: by then it may be what ends them
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 1.0, 300.0
_READERS = 16  # threads that read bodies at the same time
_OWN_TOKEN = uuid.uuid4().hex

State = Literal["due", "waiting", "running", "done", "failed", "cancelled"]
Ending = Literal["error", "refused", "lost", "released"]
Bodies = Mapping[str, bytes]  # by key; an object that was gone when it was read is not in it
Result = TypeVar("Result")
AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class EvaluationState:
    """One evaluation: its generation, whether that is recorded, how many claims there were, and the last one's fate.

    *claim* is None when it has ended, or belongs to an earlier generation; so is *failure*. *expires*, seconds since
    1970: from then on others may claim, however much their clocks differ.
    """

    generation: int = 0
    is_recorded: bool = False
    claims: int = 0
    claim: Claim | None = None
    expires: float = 0.0
    failure: Failure | None = None

    def state(self, now: float) -> State:
        """Its state at *now*, in seconds since 1970; ``waiting``: for the time of its next try."""
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


def objects_to_read(listing: LedgerListing) -> list[ObjectInfo]:
    """The objects whose bodies decide the state of an evaluation; none once it is recorded."""
    if listing.is_recorded:
        return []
    objects = [listing.newest[kind][1] for kind in ("claim", "failure", "invalid") if kind in listing.newest]
    if "renew" in listing.newest and listing.number("renew") == listing.number("claim"):
        objects.append(listing.newest["renew"][1])
    return objects


def build_view(
    listings: Mapping[str, LedgerListing], bodies: Bodies, is_gone: Callable[[Owner], bool]
) -> dict[str, EvaluationState]:
    """The state of each evaluation, by id. *is_gone*: true of an owner whose process is known to have ended."""
    return {evaluation_id: _entry(listing, bodies, is_gone) for evaluation_id, listing in listings.items()}


def _entry(listing: LedgerListing, bodies: Bodies, is_gone: Callable[[Owner], bool]) -> EvaluationState:
    claims, generation = max(listing.number("claim"), 0), listing.generation
    entry = EvaluationState(generation, listing.is_recorded, claims)
    if listing.is_recorded:
        return entry
    invalid = _parse(Invalid, listing, "invalid", bodies)
    first = invalid.claims if invalid else 0  # claims up to here, and their failures, are of earlier generations
    failed = listing.number("failure")
    if failed > first:
        entry = replace(entry, failure=_parse(Failure, listing, "failure", bodies))
    claim = _parse(Claim, listing, "claim", bodies) if claims > max(first, failed) else None
    if claim is None or claim.generation != generation or is_gone(claim.owner):
        return entry
    renewal = _parse(Renewal, listing, "renew", bodies) if listing.number("renew") == claims else None
    return replace(entry, claim=claim, expires=claim.lease(renewal).deadline())


def _parse(kind: type[AnyRecord], listing: LedgerListing, name: str, bodies: Bodies) -> AnyRecord | None:
    """A damaged record counts for none: then the work is done once more, and still recorded once."""
    if name not in listing.newest:
        return None
    key = listing.newest[name][1].key
    try:
        return parse_record(kind, bodies[key], key)
    except (KeyError, DamageError):
        return None


def current_owner() -> Owner:
    """This process."""
    process = ProcessIdentity.current()
    return Owner(place=process.place_text, pid=process.pid, token=f"{_OWN_TOKEN}-{process.pid}")


def is_gone(owner: Owner) -> bool:
    """True when *owner* was a process of this place that is no longer there."""
    return owner.process.is_gone()


class Ledger:
    """The ledger as one process sees it: ``view`` by id and ``cancelled`` patterns, as of the last ``refresh``.

    What this process does itself is seen at once. Requests are repeated as *retry_policy* says; None: never.
    """

    def __init__(self, workspace: Store, run: str, retry_policy: RetryPolicy | None = None) -> None:
        self.view: dict[str, EvaluationState] = {}
        self.cancelled: tuple[str, ...] = ()
        self.owner = current_owner()
        self._workspace, self._run = workspace, run
        self._retry_policy = retry_policy or RetryPolicy(0)
        self._bodies: dict[tuple[str, str], bytes] = {}  # by key and etag

    def refresh(self) -> None:
        """Look at everything: one listing, and reads of what is neither recorded nor untouched."""
        self.view = self._read_view(LEDGER)
        self.refresh_cancelled()

    def refresh_some(self, ids: Iterable[str]) -> None:
        """Look at a few evaluations."""
        for evaluation_id in ids:
            self.view |= self._read_view(f"{LEDGER}{evaluation_id}/")

    def refresh_cancelled(self) -> bool:
        """Read the patterns of what is cancelled; True when they have changed."""
        before, (self.cancelled, _) = self.cancelled, self._read_cancelled()
        return before != self.cancelled

    def claim(self, evaluation_id: str, name: str) -> int | None:
        """Claim an evaluation that is due: the number of the claim, or None when another process was faster."""
        entry, now = self.view.get(evaluation_id, EvaluationState()), time.time()
        number = entry.claims + 1
        key = ledger_key(evaluation_id, "claim", number)
        own = Claim(
            owner=self.owner,
            run=self._run,
            name=name,
            generation=entry.generation,
            since=now,
            expires=now + CLAIM_SECONDS,
        )
        if self._with_retry(key, lambda: take(self._workspace, key, own.to_json())):
            claim: Claim | None = own
        else:
            claim = self._read_claim(key)  # it is our own when the store's answer to the first try was lost
        expires = (claim or own).lease().deadline()  # one that cannot be read counts as long as ours would
        self.view[evaluation_id] = replace(entry, claims=number, claim=claim or own, expires=expires)
        return number if claim == own else None

    def holds(self, evaluation_id: str, claim: int, generation: int) -> bool:
        """True while our claim of that number counts: nobody has claimed since, recorded, or voided its generation.

        One that has expired counts until another follows it.
        """
        entry = self.view.get(evaluation_id, EvaluationState())
        return not entry.is_recorded and (entry.claims, entry.generation) == (claim, generation)

    def renew(self, evaluation_id: str) -> None:
        """Let our claim count from now on."""
        entry, expires = self.view[evaluation_id], time.time() + CLAIM_SECONDS
        key = ledger_key(evaluation_id, "renew", entry.claims)
        self._with_retry(key, lambda: renew(self._workspace, key, Renewal(expires=expires).to_json()))
        self.view[evaluation_id] = replace(entry, expires=expires + CLOCK_SKEW_SECONDS)

    def end(self, evaluation_id: str, kind: Ending, reason: str, max_tries: int) -> Failure:
        """Record how the work of our claim ended without a result, and when it may be tried again, if ever."""
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
        self._with_retry(key, lambda: self._workspace.put(key, failure.to_json()))
        self.view[evaluation_id] = replace(entry, claim=None, failure=failure)
        return failure

    def recorded(self, evaluation_id: str) -> None:
        """The worker of our claim has recorded the result, or another one had done so."""
        self.view[evaluation_id] = replace(self.view[evaluation_id], is_recorded=True, claim=None)

    def invalidate(self, evaluation_id: str, reason: str) -> bool:
        """Make the result and the failures of an evaluation void; False when another process has just done so."""
        entry = self.view.get(evaluation_id, EvaluationState())
        by = f"{self.owner.place.partition(' ')[0]}:{self.owner.pid}"
        void = Invalid(reason=reason, by=by, claims=entry.claims, at=time.time())
        key = ledger_key(evaluation_id, "invalid", entry.generation)
        is_created = self._with_retry(key, lambda: self._workspace.put_if_absent(key, void.to_json()))
        self.view[evaluation_id] = EvaluationState(generation=entry.generation + 1, claims=entry.claims)
        return is_created

    def change_cancelled(self, change: Callable[[tuple[str, ...]], Sequence[str]]) -> tuple[str, ...]:
        """Replace the patterns of what is cancelled by those that *change* makes of them; the new ones."""
        key = cancelled_key(self._run)
        while True:
            before, info = self._read_cancelled()
            after = tuple(dict.fromkeys(change(before)))
            data = Cancelled(patterns=after).to_json()
            is_put = (
                self._workspace.put_if_absent(key, data)
                if info is None
                else self._workspace.put_if_match(key, data, info.etag)
            )
            if is_put:
                self.cancelled = after
                return after

    def _read_view(self, prefix: str) -> dict[str, EvaluationState]:
        listings = self._with_retry(prefix, lambda: parse_listing(self._workspace.list(prefix)))
        needed = [info for listing in listings.values() for info in objects_to_read(listing)]
        missing = [info for info in needed if (info.key, info.etag) not in self._bodies]
        if missing:
            with ThreadPoolExecutor(min(_READERS, len(missing))) as readers:
                for info, body in zip(missing, readers.map(self._read, missing), strict=True):
                    if body is not None:
                        self._bodies[info.key, info.etag] = body
        cached = self._bodies
        bodies = {info.key: cached[info.key, info.etag] for info in needed if (info.key, info.etag) in cached}
        return build_view(listings, bodies, is_gone)

    def _read(self, info: ObjectInfo) -> bytes | None:
        try:
            return self._with_retry(info.key, lambda: self._workspace.read(info.key))
        except FileNotFoundError:
            return None

    def _read_claim(self, key: str) -> Claim | None:
        try:
            return parse_record(Claim, self._with_retry(key, lambda: self._workspace.read(key)), key)
        except (FileNotFoundError, DamageError):
            return None

    def _read_cancelled(self) -> tuple[tuple[str, ...], ObjectInfo | None]:
        """The patterns, and the object as it was before it was read: put_if_match with it finds any change."""
        key = cancelled_key(self._run)
        info = self._with_retry(key, lambda: self._workspace.head(key))
        if info is None:
            return (), None
        try:
            data = self._with_retry(key, lambda: self._workspace.read(key))
            return parse_record(Cancelled, data, key).patterns, info
        except FileNotFoundError:
            return (), None

    def _with_retry(self, label: str, request: Callable[[], Result]) -> Result:
        return with_retry(self._workspace, self._retry_policy, label, request)


def retry_seconds(tries: int) -> float:
    """How long to wait after the *tries*-th try: doubling, and never two at the same moment."""
    return backoff(tries, _FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS, jitter=0.5)
