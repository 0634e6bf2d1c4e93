"""SubsetReader: a part of a dataset's samples as a dataset of its own; its streams and passes see no other sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.store.protocol import Store
from pipeline.stream.dataset import DatasetReader, Sample, SampleDamagedError
from pipeline.stream.index import SampleEntry, ShardTable

Rows = NDArray[np.int64]


class SubsetReader(DatasetReader):
    """The samples of dataset *name* for which *mask* (N,), in the order of the dataset, is true.

    Rows of a shard are counted among those of the subset. The digest of its card is another one, so the order of a
    stream is its own.
    """

    def __init__(self, workspace: Store, name: str, mask: NDArray[np.bool_], **options: Any) -> None:
        super().__init__(workspace, name, **options)
        ends = np.cumsum(self.shards.sizes)
        if len(mask) != ends[-1]:
            raise ValueError(f"{len(mask)} places for {ends[-1]} samples")
        self._rows: list[Rows] = [np.flatnonzero(part) for part in np.split(mask, ends[:-1])]
        sizes = np.array([len(rows) for rows in self._rows], np.int64)
        self.shards = _SubsetTable(self.shards, sizes)
        digest = fingerprint([self.card.digest, sha256_hex(np.packbits(mask).tobytes())])
        self.card = self.card.model_copy(update={"digest": digest, "num_samples": int(sizes.sum())})

    def keys(self, shard: int) -> list[str]:
        """See DatasetReader; of the subset."""
        keys = super().keys(shard)
        return [keys[row] for row in self._rows[shard].tolist()]

    def member(self, shard: int, row: int) -> SampleEntry:
        """See DatasetReader."""
        return super().member(shard, self._row(shard, row))

    def read(self, shard: int, row: int) -> Sample:
        """See DatasetReader."""
        return super().read(shard, self._row(shard, row))

    def read_many(self, locations: Iterable[tuple[int, int]]) -> Iterator[Sample | SampleDamagedError]:
        """See DatasetReader."""
        return super().read_many((shard, self._row(shard, row)) for shard, row in locations)

    def damaged(self, shard: int, row: int, reason: str) -> SampleDamagedError:
        """See DatasetReader."""
        return super().damaged(shard, self._row(shard, row), reason)

    def _row(self, shard: int, row: int) -> int:
        return int(self._rows[shard][row])


class _SubsetTable(ShardTable):
    """The same shards with other numbers of samples. Entries stay as they are: indexes are compared with them."""

    def __init__(self, shards: ShardTable, sizes: Rows) -> None:
        self.__dict__.update(shards.__getstate__())
        self._sizes = sizes

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_sizes": self._sizes}

    @property
    def sizes(self) -> Rows:
        """How many samples of each shard are in the subset, (shards,)."""
        return self._sizes
