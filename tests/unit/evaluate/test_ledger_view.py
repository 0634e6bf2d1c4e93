"""The view of a ledger of 10^5 evaluations: pure, from one listing and few reads."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.base.digests import sha256_hex
from pipeline.base.store import ObjectInfo
from pipeline.evaluate.ledger import build_view, objects_to_read
from pipeline.records.ledger import Claim, Failure, Invalid, Owner, Renewal, ledger_key, parse_listing
from pipeline.records.record import Record

NOW = 1e9
OWNER = Owner(place="elsewhere", pid=1, token="t")


def claim(generation: int = 0) -> Claim:
    return Claim(owner=OWNER, run="r", name="n", generation=generation, since=NOW, expires=NOW + 100)


def failure(retry_after: float | None) -> Failure:
    return Failure(kind="error", run="r", name="n", reason="why", errors=1, losses=0, at=NOW, retry_after=retry_after)


class Made:
    """A listing, and what stands in its objects."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}

    def put(self, key: str, record: Record | bytes) -> None:
        self.bodies[key] = record if isinstance(record, bytes) else record.to_json()

    def listing(self) -> Iterator[ObjectInfo]:
        return (ObjectInfo(key, len(body), "etag") for key, body in sorted(self.bodies.items()))


def evaluation(number: int) -> str:
    return sha256_hex(str(number).encode())


def state_after(*files: tuple[str, int, Record | bytes]) -> str:
    """How it stands with an evaluation that has these files."""
    made = Made()
    for kind, number, record in files:
        name = f"evaluations/{evaluation(0)}/{kind}.json" if number < 0 else ledger_key(evaluation(0), kind, number)
        made.put(name, record)
    marks = parse_listing(made.listing())
    return build_view(marks, made.bodies, lambda owner: False)[evaluation(0)].state(NOW)


def test_every_history_of_one() -> None:
    void = Invalid(reason="why", by="me", claims=1, at=NOW)
    result = ("result", -1, b"anything")
    first = ("claim", 1, claim())
    assert state_after(first) == "running"
    assert state_after(first, result) == "done"
    assert state_after(first, ("failure", 1, failure(NOW + 5))) == "waiting"
    assert state_after(first, ("failure", 1, failure(None))) == "failed"
    assert state_after(first, ("failure", 1, failure(None)), ("claim", 2, claim())) == "running"
    assert state_after(first, result, ("invalid", 0, void)) == "due"
    assert state_after(first, ("failure", 1, failure(None)), ("invalid", 0, void)) == "due"
    assert state_after(first, result, ("invalid", 0, void), ("claim", 2, claim(1))) == "running"
    assert state_after(first, result, ("invalid", 0, void), ("claim", 2, claim(0))) == "due", "of the void generation"
    assert state_after(first, result, ("invalid", 0, void), ("result", 1, b"anything")) == "done"
    again = Invalid(reason="why", by="me", claims=2, at=NOW)
    assert state_after(result, ("invalid", 0, void), ("result", 1, b"x"), ("invalid", 1, again)) == "due"
    assert state_after(("claim", 9, claim()), ("claim", 10, claim()), ("failure", 9, failure(None))) == "running"


def test_a_damaged_record_means_that_the_work_is_done_once_more() -> None:
    assert state_after(("claim", 1, b"{")) == "due"
    assert state_after(("claim", 1, claim()), ("failure", 1, b"")) == "due"


def test_strangers_are_left_alone() -> None:
    keys = ["evaluations/suites/claim-1/x.json", "evaluations/cancelled/claim-1.json", "evaluations/abc/claim-1.json"]
    assert parse_listing(ObjectInfo(key, 1, "e") for key in keys) == {}


def test_a_hundred_thousand_cost_one_listing_and_reads_of_what_is_open_alone() -> None:
    made = Made()
    for number in range(100_000):
        if number % 10 == 9:
            continue  # untouched
        made.put(ledger_key(evaluation(number), "claim", 1), claim())
        if number % 1000 == 1:
            made.put(ledger_key(evaluation(number), "renew", 1), Renewal(expires=NOW + 200))
        elif number % 1000 == 2:
            made.put(ledger_key(evaluation(number), "failure", 1), failure(None))
        else:
            made.put(f"evaluations/{evaluation(number)}/result.json", b"")
            made.put(f"evaluations/{evaluation(number)}/outcomes-0123456789abcdef.parquet", b"")
    listing = list(made.listing())
    started = time.process_time()
    marks = parse_listing(listing)
    needed = [info for one in marks.values() for info in objects_to_read(one)]
    view = build_view(marks, made.bodies, lambda owner: False)
    print(f"{len(listing):,} objects in {time.process_time() - started:.2f} s of CPU")
    assert len(needed) == 400, "100 running and 100 failed, two reads each"
    states = [view[evaluation(number)].state(NOW) for number in range(1, 9)]
    assert states == ["running", "failed"] + ["done"] * 6
    assert evaluation(9) not in view
