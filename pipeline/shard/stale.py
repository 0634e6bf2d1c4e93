"""Claims of datasets that nobody makes any more. They refuse a sharding with another recipe until they are gone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.base.errors import DamageError
from pipeline.base.leftover import Leftover
from pipeline.base.place import is_gone
from pipeline.base.store import ObjectInfo, Store
from pipeline.records.dataset import CARD
from pipeline.records.record import read_record
from pipeline.shard.identity import CLAIM, Claim

_DATASETS = "datasets/"


def find_stale_claims(workspace: Store, older_than_seconds: float) -> Iterator[Leftover]:
    """Claims of datasets without a card, whose process is gone, or where nothing was written for that long.

    The shards stay: the same recipe goes on with them, and another one's sharding removes them at its end.
    """
    found: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in workspace.list(_DATASETS):
        found[info.key.split("/")[1]].append(info)
    for name, infos in found.items():
        prefix = f"{_DATASETS}{name}"
        keys = {info.key: info for info in infos}
        if f"{prefix}/{CLAIM}" in keys and f"{prefix}/{CARD}" not in keys:
            why = _why(workspace, f"{prefix}/{CLAIM}", infos, older_than_seconds)
            if why:
                yield Leftover(f"{prefix}/{CLAIM}", keys[f"{prefix}/{CLAIM}"].num_bytes, why)


def _why(workspace: Store, key: str, infos: list[ObjectInfo], older_than_seconds: float) -> str:
    try:
        claim = read_record(Claim, workspace, key)
    except FileNotFoundError:
        return ""
    except DamageError:
        claim = None  # then its age alone counts
    if claim is not None and claim.pid and is_gone(claim.place, claim.pid):
        return f"process {claim.pid} that was making the dataset is gone"
    if max(info.modified for info in infos) < time.time() - older_than_seconds:
        return "nothing of the dataset was written for a long time"
    return ""
