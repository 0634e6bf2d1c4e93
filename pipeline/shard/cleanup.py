"""What sharding that was given up has left: claims, which refuse another recipe, and datasets that never got a card."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.base.errors import DamageError
from pipeline.base.process_identity import here, is_gone
from pipeline.base.store.protocol import ObjectInfo, Orphan, Store
from pipeline.records.dataset import CARD, WORK
from pipeline.records.record import read_record
from pipeline.shard.commit import CLAIM, ShardLease

_DATASETS = "datasets/"
Found = dict[str, list[ObjectInfo]]  # what stands below each name


def find_abandoned(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """What nobody goes on with, in folders of datasets; read from the listing, before anything is removed.

    Where nothing was written for that long: all of a dataset without a card, what the parts of a split shared, and
    ``work/`` beside a card. Before that only the claim of a process that is known to be gone: the same recipe goes on
    with its shards, and another one's sharding removes them at its end. While the process of a claim is known to be
    alive, nothing of its dataset.
    """
    found: Found = defaultdict(list)
    for info in workspace.list(_DATASETS):
        found[info.key.split("/")[1]].append(info)
    claims = {name: claim for name, infos in found.items() if (claim := _claim_of(workspace, name, infos))}
    oldest = time.time() - older_than_seconds
    for name, infos in found.items():
        related = [other for other in found if _share_work(name, other)]
        if any(_is_alive(claims[other]) for other in related if other in claims):
            continue
        if max(info.modified for other in related for info in found[other]) < oldest:
            yield from _given_up(name, infos)
        elif name in claims and is_gone(claims[name].place, claims[name].pid):
            key = f"{_DATASETS}{name}/{CLAIM}"
            why = f"process {claims[name].pid} that was making the dataset is gone"
            yield from (Orphan(key, info.num_bytes, why) for info in infos if info.key == key)


def _given_up(name: str, infos: list[ObjectInfo]) -> Iterator[Orphan]:
    """Sharding has ``work/`` from its first moment to its card: what has neither, somebody else has put there."""
    prefix = f"{_DATASETS}{name}"
    if not any(info.key.startswith(f"{prefix}/{WORK}/") for info in infos):
        return
    has_card = any(info.key == f"{prefix}/{CARD}" for info in infos)
    why = "its dataset is there" if has_card else "its dataset.json never came"
    for info in infos:
        if not has_card or info.key.startswith(f"{prefix}/{WORK}/"):
            yield Orphan(info.key, info.num_bytes, f"{why}, and nothing of it was written for a long time")


def _claim_of(workspace: Store, name: str, infos: list[ObjectInfo]) -> ShardLease | None:
    """The claim of a dataset without a card, if it can be read."""
    keys = {info.key for info in infos}
    if f"{_DATASETS}{name}/{CLAIM}" not in keys or f"{_DATASETS}{name}/{CARD}" in keys:
        return None
    try:
        return read_record(ShardLease, workspace, f"{_DATASETS}{name}/{CLAIM}")
    except (FileNotFoundError, DamageError):
        return None  # then its age alone counts


def _is_alive(claim: ShardLease) -> bool:
    return bool(claim.pid) and claim.place == here() and not is_gone(claim.place, claim.pid)


def _share_work(name: str, other: str) -> bool:
    """Whether one may be a part of the other's split: a part is called NAME-PART, and NAME holds what is shared."""
    return name == other or name.startswith(f"{other}-") or other.startswith(f"{name}-")
