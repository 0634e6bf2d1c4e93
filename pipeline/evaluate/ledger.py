"""The ledger: claims are numbered and expire, a result is create-only. Computed at least once, recorded exactly once.

::

    evaluations/<id>/claim-1.json     who works on it, and until when that counts
                     failure-1.json   why the work of that claim failed
                     outcomes.parquet, artefacts.safetensors
                     result.json      create-only
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass

from pipeline.base.digests import canonical_json
from pipeline.base.store import Store
from pipeline.records.score import EvaluationResult, result_key

CLAIM_SECONDS = 600.0


@dataclass(frozen=True)
class Owner:
    """Who claims: a process on a host. A dead process on this very host holds nothing."""

    host: str
    pid: int

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return cls(socket.gethostname(), os.getpid())

    def is_gone(self) -> bool:
        """True when it ran on this host and its process is no longer there."""
        return self.host == socket.gethostname() and not os.path.exists(f"/proc/{self.pid}")


def claim(workspace: Store, evaluation_id: str, owner: Owner) -> int | None:
    """Claim an evaluation: the number of the claim, or None while somebody else's counts."""
    number = 1
    while True:
        key = f"evaluations/{evaluation_id}/claim-{number}.json"
        told = {"host": owner.host, "pid": owner.pid, "expires": time.time() + CLAIM_SECONDS}
        if workspace.put_if_absent(key, canonical_json(told).encode()):
            return number
        theirs = json.loads(workspace.read(key))
        failed = workspace.head(f"evaluations/{evaluation_id}/failure-{number}.json") is not None
        counts = time.time() < theirs["expires"] and not Owner(theirs["host"], theirs["pid"]).is_gone()
        if counts and not failed:
            return None
        number += 1


def record(workspace: Store, result: EvaluationResult) -> bool:
    """Record the result; False when there is one already, which then stands."""
    return workspace.put_if_absent(result_key(result.id), result.to_json())


def record_failure(workspace: Store, evaluation_id: str, number: int, reason: str) -> None:
    """Note why the work of claim *number* failed."""
    workspace.put(f"evaluations/{evaluation_id}/failure-{number}.json", canonical_json({"reason": reason}).encode())


def recorded_ids(workspace: Store) -> set[str]:
    """Ids of all evaluations with a result."""
    keys = (info.key for info in workspace.list("evaluations/"))
    return {key.split("/")[1] for key in keys if key.endswith("/result.json")}
