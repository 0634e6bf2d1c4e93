"""Every sample once, in the order of the shards: what evaluation reads. Fixed batches with a mask, the same number of
them on every rank; what fills the last ones up is masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.base.world import World
from pipeline.images.decode import decode
from pipeline.images.transform import EvaluationTransform
from pipeline.stream.dataset import DatasetReader, SampleDamagedError

_ALONE = World()


@dataclass(frozen=True)
class EvaluationBatch:
    """images uint8 (B, 3, S, S), labels int64 (B,) with -1 for none, keys of the samples, valid bool (B,).

    Where ``valid`` is False there is no sample: a black image, label -1, key "".
    """

    keys: list[str]
    images: Tensor
    labels: Tensor
    valid: Tensor


def pass_once(
    reader: DatasetReader, transform: EvaluationTransform, batch_size: int, world: World = _ALONE
) -> Iterator[EvaluationBatch]:
    """Batches of *batch_size* (of this rank) over the whole dataset, as many on every rank of *world*.

    Batch t of all ranks, side by side, holds the samples from ``t * batch_size * world.size`` on. Raises
    SampleDamagedError: an evaluation does not pass over damage.
    """
    ends = np.cumsum(reader.shards.sizes)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, batch_size * world.size):
        first = start + world.rank * batch_size
        numbers = np.arange(first, max(first, min(first + batch_size, total)))
        shards = np.searchsorted(ends, numbers, side="right")
        rows = numbers - (ends[shards] - reader.shards.sizes[shards])
        yield _batch(reader, transform, batch_size, list(zip(shards.tolist(), rows.tolist(), strict=True)))


def each_once(reader: DatasetReader, transform: EvaluationTransform, batch_size: int) -> Iterator[EvaluationBatch]:
    """The same on one rank without padding: the last batch may be shorter."""
    for batch in pass_once(reader, transform, batch_size):
        count = int(batch.valid.sum())
        yield EvaluationBatch(batch.keys[:count], batch.images[:count], batch.labels[:count], batch.valid[:count])


def _batch(
    reader: DatasetReader, transform: EvaluationTransform, batch_size: int, places: list[tuple[int, int]]
) -> EvaluationBatch:
    images = np.zeros((batch_size, 3, transform.size, transform.size), np.uint8)
    labels = np.full(batch_size, -1, np.int64)
    keys = [""] * batch_size
    for at, sample in enumerate(reader.read_many(places)):
        if isinstance(sample, SampleDamagedError):
            raise sample
        np.copyto(images[at], transform.apply(decode(sample.data)[0]).transpose(2, 0, 1))
        keys[at] = sample.key
        if sample.labels:
            labels[at] = sample.labels[0]
    valid = torch.arange(batch_size) < len(places)
    return EvaluationBatch(keys, torch.from_numpy(images), torch.from_numpy(labels), valid)
