"""Prefetcher: fetches the shards that will be read next, while the present ones are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import islice

from pipeline.base.errors import VitpipeError
from pipeline.base.retry import RetryPolicy
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.mixture import Mixture

_WINDOWS_PER_SHARD = 16  # that are examined for each shard to fetch: a shard comes once for each of its windows
_LOOKS_PER_WINDOW = 8
_RETRY_SECONDS = 0.2  # until a shard that another process fetches is tried again
Need = tuple[int, int]  # dataset, shard


class Prefetcher:
    """Threads that bring shards and their indexes into the node's cache, in the order in which *slots* need them.

    At most *shards* of them and *share_bytes* (at least one shard) are kept open; what is open is not evicted before
    everything else. Processes of a node share the work: a shard that another one fetches is passed over. In a folder
    the disk is asked to read ahead. An error is no error here: the reader that needs the shard meets it itself, when
    it needs it; until then it is in ``errors``. To be made in the process that reads.
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
            reader.cache_with(RetryPolicy(reader.retry.seconds, stopped=self._stopped)) for reader in self._readers
        ]
        self.errors: dict[Need, Exception] = {}
        self._changed = threading.Condition()
        self._needed: list[Need] = []
        self._busy: set[Need] = set()
        self._owned: dict[Need, int] = {}
        window = max(order.window for order in mixture.orders) * mixture.partitions
        self._stride, self._next_look = max(1, window // _LOOKS_PER_WINDOW), position
        self.advance(position)
        self._threads = [threading.Thread(target=self._run, name="prefetch", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def advance(self, position: int) -> None:
        """What is before *position* has been read. Cheap: it is examined a few times a window only."""
        if position < self._next_look:
            return
        self._next_look = position + self._stride
        needed = self._look(position)
        with self._changed:
            self._needed = needed
            self.errors.clear()
            for need in set(self._owned).difference(needed):
                os.close(self._owned.pop(need))
            self._changed.notify_all()

    @property
    def ready(self) -> set[Need]:
        """(dataset, shard) of those that were fetched and are still needed."""
        with self._changed:
            return set(self._owned)

    @property
    def is_idle(self) -> bool:
        """True when all that is needed was fetched, or cannot be had."""
        with self._changed:
            return all(need in self._owned or need in self.errors for need in self._needed)

    def close(self) -> None:
        """End the threads and close the shards. What was fetched stays in the cache."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while self._owned:
            os.close(self._owned.popitem()[1])

    def _look(self, position: int) -> list[Need]:
        """What is needed from *position* on, in the order of need."""
        shards, left = self._limits
        needed: dict[Need, None] = {}
        for need in islice(self._mixture.shards_ahead(position, self._slots), _WINDOWS_PER_SHARD * shards):
            dataset, shard = need
            if need in needed or self._readers[dataset].is_ranged:
                continue
            left -= self._readers[dataset].shards[shard].num_bytes
            if needed and left < 0:
                break
            needed[need] = None
            if len(needed) == shards:
                break
        return list(needed)

    def _run(self) -> None:
        skipped: set[Need] = set()  # those that another process fetches
        while not self._stopped.is_set():
            with self._changed:
                need = next((need for need in self._needed if self._is_open(need) and need not in skipped), None)
                if need is None:
                    self._changed.wait(_RETRY_SECONDS if skipped else None)
                    skipped.clear()
                    continue
                self._busy.add(need)
            if not self._fetch(need):
                skipped.add(need)

    def _is_open(self, need: Need) -> bool:
        return need not in self._owned and need not in self._busy and need not in self.errors

    def _fetch(self, need: Need) -> bool:
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
            elif descriptor is not None and need in self._needed:
                self._owned[need] = descriptor
            elif descriptor is not None:
                os.close(descriptor)
        return descriptor is not None or failure is not None
