"""The ledger of evaluations: what is in it, and what a listing of it tells.

::

    evaluations/<id>/claim-<n>.json        who works on it, and until when that counts; create-only
                     renew-<n>.json        claim n counts longer
                     failure-<n>.json      how the work of claim n ended without a result
                     invalid-<g>.json      the results and failures of generation g are void; create-only
                     result.json           of generation 0, result-<g>.json of a later one; create-only
                     outcomes-<digest>.parquet, ...   what a result lists, named by content: no writer hurts another
                     tuning-<training>.safetensors    where a long fine-tuning is; not part of the ledger
    evaluations/cancelled/<run>.json       what of a run is not wanted now
    evaluations/suites/<run>/<suite>.json  what a run was last asked to be judged on

The current generation of an evaluation is the number of its ``invalid`` files. Claims are numbered through all
generations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.base.store.protocol import ObjectInfo
from pipeline.records.record import Record

LEDGER = "evaluations/"
_FILE = re.compile(r"evaluations/([0-9a-f]{64})/(claim|renew|failure|invalid|result)(?:-(\d+))?\.json")


class Owner(Record):
    """Who claims: a process, the place where its number means something, and a word that no other process has."""

    place: str
    pid: int
    token: str


class Claim(Record):
    """*owner* works on evaluation *name* of *run*, since and until seconds since 1970."""

    owner: Owner
    run: str
    name: str
    generation: int
    since: float
    expires: float


class Renewal(Record):
    """The claim counts until then, in seconds since 1970."""

    expires: float


class Failure(Record):
    """How the work of a claim ended. ``errors`` and ``losses`` are counted over the generation, this one included.

    error: the evaluation failed; refused: it cannot be done; lost: its worker or its store went away; released: it was
    put back, by who was interrupted or asked to. ``retry_after``, seconds since 1970; None: never by itself.
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
    """Why a generation is void, who said so, and the number of the last claim before that."""

    reason: str
    by: str
    claims: int
    at: float


class Cancelled(Record):
    """Patterns of the names of evaluations of a run that are not wanted now."""

    patterns: tuple[str, ...]


class StoredSuite(Record):
    """What a run was last asked to be judged on, under this name."""

    schema_version: Literal[1] = 1
    run: str
    name: str
    recipe: dict[str, Any]


@dataclass
class LedgerListing:
    """What a listing tells of one evaluation: the newest file of each kind."""

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


def read_marks(listing: Iterable[ObjectInfo]) -> dict[str, LedgerListing]:
    """What a listing of ``evaluations/`` tells, by id. Reads nothing."""
    found: dict[str, LedgerListing] = {}
    for info in listing:
        match = _FILE.fullmatch(info.key)
        if match:
            marks = found.setdefault(match[1], LedgerListing())
            number = int(match[3] or 0)
            if number >= marks.number(match[2]):
                marks.newest[match[2]] = (number, info)
    return found


def ledger_key(evaluation_id: str, kind: str, number: int) -> str:
    """Where file *number* of *kind* of an evaluation stands."""
    return f"{LEDGER}{evaluation_id}/{kind}-{number}.json"


def cancelled_key(run: str) -> str:
    """Where it stands what of *run* is not wanted."""
    return f"{LEDGER}cancelled/{run}.json"


def suite_prefix(run: str) -> str:
    """Below which the suites of *run* stand."""
    return f"{LEDGER}suites/{run}/"
