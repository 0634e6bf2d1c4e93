"""What abandoned sharding has left: leases, which refuse another recipe, and datasets that never got a card."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.base.errors import DamageError
from pipeline.base.store.protocol import ObjectInfo, Orphan, Store
from pipeline.records.dataset import CARD, WORK
from pipeline.records.record import read_record
from pipeline.shard.commit import LEASE_KEY, ShardLease

_DATASETS = "datasets/"


def find_abandoned(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """What nobody goes on with, in folders of datasets; read from the listing, before anything is removed.

    Where nothing was written for that long: all of a dataset without a card, what the parts of a split shared, and
    ``work/`` beside a card. Before that only the lease of a process that is known to be gone: the same recipe goes on
    with its shards, and another one's sharding removes them at its end. While the process of a lease is known to be
    alive, nothing of its dataset.
    """
    listings: dict[str, list[ObjectInfo]] = defaultdict(list)  # by the dataset's name
    for info in workspace.list(_DATASETS):
        listings[info.key.split("/")[1]].append(info)
    leases = {name: lease for name, infos in listings.items() if (lease := _read_lease(workspace, name, infos))}
    oldest = time.time() - older_than_seconds
    for name, infos in listings.items():
        related = [dataset for dataset in listings if _share_work(name, dataset)]
        if any(leases[dataset].process.is_alive() for dataset in related if dataset in leases):
            continue
        if max(info.modified for dataset in related for info in listings[dataset]) < oldest:
            yield from _unfinished(name, infos)
        elif name in leases and leases[name].process.is_gone():
            key = f"{_DATASETS}{name}/{LEASE_KEY}"
            why = f"process {leases[name].pid} that was making the dataset is gone"
            yield from (Orphan(key, info.num_bytes, why) for info in infos if info.key == key)


def _read_lease(workspace: Store, name: str, infos: list[ObjectInfo]) -> ShardLease | None:
    """The lease of a dataset without a card, if it can be read."""
    keys = {info.key for info in infos}
    if f"{_DATASETS}{name}/{LEASE_KEY}" not in keys or f"{_DATASETS}{name}/{CARD}" in keys:
        return None
    try:
        return read_record(ShardLease, workspace, f"{_DATASETS}{name}/{LEASE_KEY}")
    except (FileNotFoundError, DamageError):
        return None  # then its age alone counts


def _share_work(first: str, second: str) -> bool:
    """Whether one may be a part of the other's split: a part is called NAME-PART, and NAME holds what is shared."""
    return first == second or first.startswith(f"{second}-") or second.startswith(f"{first}-")


def _unfinished(name: str, infos: list[ObjectInfo]) -> Iterator[Orphan]:
    """Sharding has ``work/`` from its first moment to its card: what has neither was put there by somebody else."""
    prefix = f"{_DATASETS}{name}"
    if not any(info.key.startswith(f"{prefix}/{WORK}/") for info in infos):
        return
    has_card = any(info.key == f"{prefix}/{CARD}" for info in infos)
    why = "its dataset is there" if has_card else "its dataset.json never came"
    for info in infos:
        if not has_card or info.key.startswith(f"{prefix}/{WORK}/"):
            yield Orphan(info.key, info.num_bytes, f"{why}, and nothing of it was written for a long time")
