"""Every sample once, in the order of the shards: what evaluation reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.images.decode import decode
from pipeline.images.transform import EvaluationTransform
from pipeline.stream.dataset import DatasetReader


@dataclass(frozen=True)
class EvaluationBatch:
    """images uint8 (B, 3, S, S), labels int64 (B,) with -1 for none, keys of the samples."""

    keys: list[str]
    images: Tensor
    labels: Tensor


def each_once(reader: DatasetReader, transform: EvaluationTransform, batch_size: int) -> Iterator[EvaluationBatch]:
    """Batches over the whole dataset; the last may be shorter."""
    places = [(shard, row) for shard, entry in enumerate(reader.shards) for row in range(entry.num_samples)]
    for start in range(0, len(places), batch_size):
        chunk = places[start : start + batch_size]
        samples = [reader.read(shard, row) for shard, row in chunk]
        images = np.stack([transform.apply(decode(sample.data)[0]).transpose(2, 0, 1) for sample in samples])
        labels = [sample.labels[0] if sample.labels else -1 for sample in samples]
        yield EvaluationBatch([sample.key for sample in samples], torch.from_numpy(images), torch.tensor(labels))
