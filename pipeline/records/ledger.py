"""The ledger of evaluations: its records, its keys, and the newest files of each evaluation in a listing.

::

    evaluations/<id>/claim-<n>.json        who works on it, and until when that counts; create-only
                     renew-<n>.json        claim n counts longer
                     failure-<n>.json      how the work of claim n ended without a result
                     invalid-<g>.json      the results and failures of generation g are void; create-only
                     result.json           of generation 0, result-<g>.json of a later one; create-only
                     outcomes-<digest>.parquet, ...   what a result lists, named by content: no writer hurts another
                     tuning-<training>.safetensors    where a long fine-tuning is; not part of the ledger
    evaluations/cancelled/<run>.json       patterns of what of a run is cancelled now
    evaluations/suites/<run>/<suite>.json  the suite under which a run was evaluated last

The current generation of an evaluation is the number of its ``invalid`` files. Claims are numbered through all
generations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.base.lease import Lease
from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.store.protocol import ObjectInfo
from pipeline.records.record import Record

LEDGER = "evaluations/"
_FILE = re.compile(r"evaluations/([0-9a-f]{64})/(claim|renew|failure|invalid|result)(?:-(\d+))?\.json")


class Owner(Record):
    """Who claims: a process, as ``ProcessIdentity.place_text`` and number, and a token that no other process has."""

    place: str
    pid: int
    token: str

    @property
    def process(self) -> ProcessIdentity:
        """The process that claims; without its start time, which is not stored."""
        return ProcessIdentity.from_place(self.place, self.pid)


class Claim(Record):
    """*owner* works on evaluation *name* of *run*; *since* and *expires* are in seconds since 1970."""

    owner: Owner
    run: str
    name: str
    generation: int
    since: float
    expires: float

    def lease(self, renewal: Renewal | None = None) -> Lease:
        """The lease that it is; *renewal*: its newest one."""
        expires = renewal.expires if renewal else self.expires
        return Lease(self.owner.process, self.owner.token, self.since, expires)


class Renewal(Record):
    """The claim of the same number counts until *expires*, in seconds since 1970."""

    expires: float


class Failure(Record):
    """How the work of a claim ended. ``errors`` and ``losses`` are counted over the generation, this one included.

    error: the evaluation failed; refused: it cannot be done; lost: its worker or its store went away; released: it was
    put back, by a process that was interrupted, or on request. *at* and *retry_after* are in seconds since 1970;
    *retry_after* None: it is never tried again by itself.
    """

    kind: Literal["error", "refused", "lost", "released"]
    run: str
    name: str
    reason: str
    errors: int
    losses: int
    at: float
    retry_after: float | None


class Invalid(Record):
    """Why a generation is void, who made it so, and the number of the last claim before that."""

    reason: str
    by: str
    claims: int
    at: float


class Cancelled(Record):
    """Patterns of the names of the evaluations of a run that are cancelled now."""

    patterns: tuple[str, ...]


class StoredSuite(Record):
    """The suite under which a run was evaluated last, under this name."""

    schema_version: Literal[1] = 1
    run: str
    name: str
    recipe: dict[str, Any]


@dataclass
class LedgerListing:
    """The newest file of each kind of one evaluation: its number and its listing."""

    newest: dict[str, tuple[int, ObjectInfo]] = field(default_factory=dict)

    def number(self, kind: str) -> int:
        """The number of the newest file of *kind*; -1: there is none."""
        return self.newest[kind][0] if kind in self.newest else -1

    @property
    def generation(self) -> int:
        """How often it was made invalid."""
        return self.number("invalid") + 1

    @property
    def is_recorded(self) -> bool:
        """True when the current generation has a result."""
        return self.number("result") >= self.generation  # above it: the listing began before it was made invalid


def parse_listing(objects: Iterable[ObjectInfo]) -> dict[str, LedgerListing]:
    """The evaluations in a listing of ``evaluations/``, by id. Reads nothing."""
    listings: dict[str, LedgerListing] = {}
    for info in objects:
        match = _FILE.fullmatch(info.key)
        if match:
            listing = listings.setdefault(match[1], LedgerListing())
            number = int(match[3] or 0)
            if number >= listing.number(match[2]):
                listing.newest[match[2]] = (number, info)
    return listings


def ledger_key(evaluation_id: str, kind: str, number: int) -> str:
    """The key of file *number* of *kind* of an evaluation."""
    return f"{LEDGER}{evaluation_id}/{kind}-{number}.json"


def cancelled_key(run: str) -> str:
    """The key of the patterns of *run* that are cancelled."""
    return f"{LEDGER}cancelled/{run}.json"


def suite_prefix(run: str) -> str:
    """The prefix of the keys of the suites of *run*."""
    return f"{LEDGER}suites/{run}/"
