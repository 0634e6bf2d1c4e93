"""Publishers of one dataset that start together, each in a process of its own; for test_shard_publishers.py."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import ConflictError
from pipeline.base.store import open_store
from pipeline.records.dataset import DatasetCard
from pipeline.shard.commit import publish


@dataclass(frozen=True)
class Outcome:
    """What one publisher got: the digest of the card that it was given, or the conflict it was told."""

    created: bool
    digest: str
    conflict: str


def race(targets: list[str], cards: list[list[DatasetCard]]) -> list[list[Outcome]]:
    """In round r, publisher p publishes ``cards[r][p]`` at ``targets[r]``; what each got, by round."""
    context = multiprocessing.get_context("forkserver")  # it starts them from a process without threads
    context.set_forkserver_preload(["pipeline.shard.commit"])
    count = len(cards[0])
    barrier, results = context.Barrier(count), context.Queue()
    mine = [[row[number].to_json() for row in cards] for number in range(count)]
    environment = dict(os.environ)  # a fork server keeps the one of its start
    processes = [
        context.Process(target=_publish_all, args=(number, targets, own, environment, barrier, results))
        for number, own in enumerate(mine)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=90) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    return [list(row) for row in zip(*(found[number] for number in range(count)), strict=True)]


def _publish_all(
    number: int, targets: list[str], cards: list[bytes], environment: dict[str, str], barrier: Any, results: Any
) -> None:
    os.environ.update(environment)
    found = []
    for uri, data in zip(targets, cards, strict=True):
        found.append(_publish(uri, DatasetCard.model_validate_json(data), barrier))
    results.put((number, found))


def _publish(uri: str, card: DatasetCard, barrier: Any) -> Outcome:
    created: list[bool] = []
    target = open_store(uri)
    put_if_absent = target.put_if_absent

    def listened(key: str, data: bytes) -> bool:
        created.append(put_if_absent(key, data))
        return created[-1]

    target.put_if_absent = listened  # type: ignore[method-assign]
    target.head("opens-the-connection")
    barrier.wait(timeout=60)
    try:
        digest = publish(target, card).digest
    except ConflictError as error:
        return Outcome(any(created), "", str(error))
    return Outcome(any(created), digest, "")
