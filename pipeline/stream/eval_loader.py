"""Every sample once, in the order of the shards, for evaluation. Fixed batches with a mask, the same number of them on
every rank; what fills the last ones up is masked.
"""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipeline.base.world import World
from pipeline.images.decode import ImageRejectedError, decode
from pipeline.images.transforms import EvaluationTransform, Pixels
from pipeline.stream.dataset import DatasetReader, Sample, SampleDamagedError

_ONE_RANK = World()
_MOST_THREADS = 8  # that decode for one network
_NICENESS = 10  # of those threads


@dataclass(frozen=True)
class EvaluationBatch:
    """images uint8 (B, 3, S, S), labels int64 (B,) with -1 for none, keys of the samples, valid bool (B,).

    ``labels`` holds the first label of each sample, ``label_lists`` all of them. Where ``valid`` is False there is no
    sample: a black image, label -1, no labels, key "".
    """

    keys: list[str]
    images: Tensor
    labels: Tensor
    valid: Tensor
    label_lists: list[tuple[int, ...]]


def padded_batches(
    reader: DatasetReader, transform: EvaluationTransform, batch_size: int, world: World = _ONE_RANK
) -> Iterator[EvaluationBatch]:
    """Batches of *batch_size* (of this rank) over the whole dataset, as many on every rank of *world*.

    Batch t of all ranks, side by side, holds the samples from ``t * batch_size * world.size`` on. Raises
    SampleDamagedError: an evaluation does not pass over damage.
    """
    total = int(reader.shards.sizes.sum())
    for start in range(0, total, batch_size * world.size):
        first = start + world.rank * batch_size
        yield _batch(reader, transform, batch_size, _locations(reader, first, min(first + batch_size, total)))


def evaluation_batches(
    reader: DatasetReader, transform: EvaluationTransform, batch_size: int
) -> Iterator[EvaluationBatch]:
    """The same on one rank without padding: the last batch may be shorter."""
    for batch in padded_batches(reader, transform, batch_size):
        count = int(batch.valid.sum())
        yield EvaluationBatch(
            batch.keys[:count],
            batch.images[:count],
            batch.labels[:count],
            batch.valid[:count],
            batch.label_lists[:count],
        )


def prefetch_spans(
    reader: DatasetReader, transform: EvaluationTransform, spans: Sequence[tuple[int, int]]
) -> Generator[EvaluationBatch, None, None]:
    """For each of *spans* its samples, from the first number to before the second; decoded in threads, ahead of need.

    Decoding lets other threads run. Raises as ``padded_batches``. Close it when it is not read to its end.
    """
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    readers = _Readers(reader)
    pending: deque[Future[EvaluationBatch]] = deque()
    left = iter(spans)

    def read(span: tuple[int, int]) -> EvaluationBatch:
        own, (start, stop) = readers.own(), span
        return _batch(own, transform, stop - start, _locations(own, start, stop))

    pool = ThreadPoolExecutor(threads, "decode", initializer=_yield_to_the_network)
    try:
        pending.extend(pool.submit(read, span) for span in islice(left, 2 * threads))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(read, span) for span in islice(left, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
        readers.close()


def _yield_to_the_network() -> None:
    """This thread decodes on what the forward pass leaves of the cores: that one waits where decoding falls behind."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _Readers:
    """A reader for each thread: copies of one, which is for one thread."""

    def __init__(self, reader: DatasetReader) -> None:
        self._reader = reader
        self._local, self._copies = threading.local(), deque[DatasetReader]()

    def own(self) -> DatasetReader:
        """That of this thread."""
        if not hasattr(self._local, "reader"):
            self._local.reader = copy.deepcopy(self._reader)
            self._copies.append(self._local.reader)
        reader: DatasetReader = self._local.reader
        return reader

    def close(self) -> None:
        """Close all. No thread uses them any more."""
        for reader in self._copies:
            reader.close()


def _locations(reader: DatasetReader, start: int, stop: int) -> list[tuple[int, int]]:
    """(shard, row) of the samples from number *start* to before *stop*, in the order of the shards."""
    sizes = reader.shards.sizes
    ends = np.cumsum(sizes)
    numbers = np.arange(start, max(start, stop))
    shards = np.searchsorted(ends, numbers, side="right")
    rows = numbers - (ends[shards] - sizes[shards])
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


def _batch(
    reader: DatasetReader, transform: EvaluationTransform, batch_size: int, locations: list[tuple[int, int]]
) -> EvaluationBatch:
    images = np.zeros((batch_size, 3, transform.size, transform.size), np.uint8)
    labels = np.full(batch_size, -1, np.int64)
    keys = [""] * batch_size
    label_lists: list[tuple[int, ...]] = [()] * batch_size
    for at, sample in enumerate(reader.read_many(locations)):
        if isinstance(sample, SampleDamagedError):
            raise sample
        np.copyto(images[at], transform.apply(_decoded(reader, locations[at], sample)).transpose(2, 0, 1))
        keys[at], label_lists[at] = sample.key, sample.labels
        if sample.labels:
            labels[at] = sample.labels[0]
    valid = torch.arange(batch_size) < len(locations)
    return EvaluationBatch(keys, torch.from_numpy(images), torch.from_numpy(labels), valid, label_lists)


def _decoded(reader: DatasetReader, location: tuple[int, int], sample: Sample) -> Pixels:
    try:
        return decode(sample.data)[0]
    except ImageRejectedError as error:  # of a dataset whose images were not all decoded when it was made
        raise reader.damaged(*location, error.reason) from None
