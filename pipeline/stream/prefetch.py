"""Fetches the shards that will be read next, while the present ones are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import islice

from pipeline.base.errors import VitpipeError
from pipeline.base.retry import RetryPolicy
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.mixture import Mixture

_LOOK = 16  # windows that are looked at for each shard that is wanted: a shard comes once for each of its windows
_LOOKS_PER_WINDOW = 8
_RETRY_SECONDS = 0.2  # how soon it is looked again at what another process fetches
Need = tuple[int, int]  # dataset, shard


class Prefetcher:
    """Threads that bring shards and their indexes into the node's cache, in the order in which *slots* need them.

    At most *shards* of them and *share_bytes* (at least one shard) are held ahead; what is held is not evicted before
    everything else. Processes of a node share the work: a shard that another one fetches is passed over. In a folder
    the disk is asked to read ahead. An error is no error here: the reader that needs the shard meets it itself, when
    it needs it; until then it stands in ``errors``. To be made in the process that reads.
    """

    def __init__(
        self,
        readers: Sequence[DatasetReader],
        mixture: Mixture,
        slots: Sequence[int],
        position: int,
        *,
        shards: int,
        share_bytes: int,
        threads: int = 2,
    ) -> None:
        self._readers, self._mixture, self._slots = tuple(readers), mixture, list(slots)
        self._limits = shards, share_bytes
        self._stopped = threading.Event()
        self._caches = [
            reader.cache_with(RetryPolicy(reader.patience.seconds, stopped=self._stopped)) for reader in self._readers
        ]
        self.errors: dict[Need, Exception] = {}
        self._changed = threading.Condition()
        self._wanted: list[Need] = []
        self._busy: set[Need] = set()
        self._held: dict[Need, int] = {}
        window = max(order.window for order in mixture.orders) * mixture.partitions
        self._stride, self._next_look = max(1, window // _LOOKS_PER_WINDOW), position
        self.advance(position)
        self._threads = [threading.Thread(target=self._run, name="read-ahead", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def advance(self, position: int) -> None:
        """Say that what stands before *position* has been read. Cheap: it is looked at a few times a window only."""
        if position < self._next_look:
            return
        self._next_look = position + self._stride
        wanted = self._look(position)
        with self._changed:
            self._wanted = wanted
            self.errors.clear()
            for need in set(self._held).difference(wanted):
                os.close(self._held.pop(need))
            self._changed.notify_all()

    @property
    def held(self) -> set[Need]:
        """(dataset, shard) of those that are there."""
        with self._changed:
            return set(self._held)

    @property
    def is_idle(self) -> bool:
        """True when all that is wanted is there, or cannot be had."""
        with self._changed:
            return all(need in self._held or need in self.errors for need in self._wanted)

    def close(self) -> None:
        """End the threads; nothing is held any more. What was fetched stays in the cache."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while self._held:
            os.close(self._held.popitem()[1])

    def _look(self, position: int) -> list[Need]:
        """What is needed from *position* on, the first first."""
        shards, left = self._limits
        wanted: dict[Need, None] = {}
        for need in islice(self._mixture.shards_ahead(position, self._slots), _LOOK * shards):
            dataset, shard = need
            if need in wanted or self._readers[dataset].is_ranged:
                continue
            left -= self._readers[dataset].shards[shard].num_bytes
            if wanted and left < 0:
                break
            wanted[need] = None
            if len(wanted) == shards:
                break
        return list(wanted)

    def _run(self) -> None:
        passed: set[Need] = set()  # those that another process fetches
        while not self._stopped.is_set():
            with self._changed:
                need = next((need for need in self._wanted if self._is_open(need) and need not in passed), None)
                if need is None:
                    self._changed.wait(_RETRY_SECONDS if passed else None)
                    passed.clear()
                    continue
                self._busy.add(need)
            if not self._bring(need):
                passed.add(need)

    def _is_open(self, need: Need) -> bool:
        return need not in self._held and need not in self._busy and need not in self.errors

    def _bring(self, need: Need) -> bool:
        """False when another process fetches it."""
        dataset, shard = need
        descriptor, failure = None, None
        try:
            descriptor = self._readers[dataset].bring(shard, self._caches[dataset])
        except (VitpipeError, OSError) as error:
            failure = error
        with self._changed:
            self._busy.discard(need)
            if failure is not None:
                self.errors[need] = failure
            elif descriptor is not None and need in self._wanted:
                self._held[need] = descriptor
            elif descriptor is not None:
                os.close(descriptor)
        return descriptor is not None or failure is not None
