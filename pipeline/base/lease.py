"""Leases: which process owns something in a store now, until when, and who may take it over.

A lease is a small object in a store. Its body is the stage's own record; ``Lease`` is what the stages' records have in
common. There are three kinds, by how the key is chosen:

==============  ===============================================================================================
one key         ``take`` creates it, ``take_over`` replaces that of a holder that is gone
numbered keys   ``take_next``: the number is a fencing token, only the holder of the newest may commit its work
a holder's key  ``renew`` writes it, whether it is there or not; ``release`` removes it
==============  ===============================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.base.process_identity import ProcessIdentity
from pipeline.base.store.protocol import Store

CLOCK_SKEW_SECONDS = 60.0  # by which the clocks of two hosts may differ


@dataclass(frozen=True)
class Lease:
    """*holder* (None: not known) with its *token*, which no other holder has; *expires* None: it counts for ever.

    *since* and *expires* are in seconds since 1970, by the clock of the holder's host.
    """

    holder: ProcessIdentity | None = None
    token: str = ""
    since: float = 0.0
    expires: float | None = None

    def deadline(self, clock_skew: float = CLOCK_SKEW_SECONDS) -> float:
        """When it has expired by every clock that is at most *clock_skew* seconds behind; infinity: never."""
        return math.inf if self.expires is None else self.expires + clock_skew

    def is_live(self, now: float, clock_skew: float = CLOCK_SKEW_SECONDS) -> bool:
        """True while it has not expired."""
        return now < self.deadline(clock_skew)

    def is_abandoned(self, now: float, clock_skew: float = CLOCK_SKEW_SECONDS) -> bool:
        """True when it has expired, or when its holder is known to have ended."""
        return not self.is_live(now, clock_skew) or (self.holder is not None and self.holder.is_gone())


def take(store: Store, key: str, body: bytes) -> bool:
    """Create the lease; False, and nothing written, when there is one at *key*. One of many racers wins."""
    return store.put_if_absent(key, body)


def take_over(store: Store, key: str, body: bytes, existing: Lease, now: float) -> bool:
    """Put *body* in the place of the *existing* lease if that is abandoned; else False, and nothing written.

    Of two that take over at the same moment the last one stays: only for leases whose holders do no harm side by side.
    """
    is_abandoned = existing.is_abandoned(now)
    if is_abandoned:
        store.put(key, body)
    return is_abandoned


def take_next(store: Store, prefix: str, body: bytes) -> str:
    """Create the lease of the next number below *prefix*, which ends with a slash: that number, like ``"0003"``."""
    number = max((int(name) for name in list_numbers(store, prefix)), default=0) + 1
    while not take(store, f"{prefix}{number:04d}.json", body):
        number += 1
    return f"{number:04d}"


def list_numbers(store: Store, prefix: str) -> list[str]:
    """All numbers taken so far, in order: the last one is the newest."""
    names = (info.key.rpartition("/")[2] for info in store.list(prefix))
    return sorted(name.removesuffix(".json") for name in names)


def renew(store: Store, key: str, body: bytes) -> None:
    """Let the lease at *key* count as *body* says, whether there is one or not: the key is its holder's alone."""
    store.put(key, body)


def release(store: Store, key: str) -> None:
    """Remove the lease; nothing happens when there is none."""
    store.delete(key)
