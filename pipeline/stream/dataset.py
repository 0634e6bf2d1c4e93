"""A dataset opened for reading: card, shard table, indexes, and samples by offset, each checked when it is read."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.store import Store
from pipeline.records.dataset import SHARDS_TABLE, DatasetCard, ShardEntry, dataset_prefix, read_dataset_card
from pipeline.stream.cache import ShardCache

_HEADER_BYTES = 512
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Sample:
    """One sample as stored."""

    key: str
    data: bytes
    labels: tuple[int, ...]


class SampleDamagedError(DamageError):
    """A sample whose header or bytes are not what the index says; names shard, key and offset."""


class DatasetReader:
    """Reads samples of dataset *name* in *workspace*. Can be pickled; opens files where it is used."""

    def __init__(
        self, workspace: Store, name: str, *, check: Literal["digest", "header"] = "digest", cache: Path | None = None
    ) -> None:
        self.card: DatasetCard = read_dataset_card(workspace, name)
        self._workspace, self._prefix, self._check = workspace, dataset_prefix(name), check
        self._cache = ShardCache(workspace, cache)
        self.shards = self._read_shards()
        self._open_caches()

    def _read_shards(self) -> list[ShardEntry]:
        data = self._workspace.read(f"{self._prefix}/{SHARDS_TABLE}")
        if sha256_hex(data) != self.card.tables[SHARDS_TABLE]:
            raise DamageError(f"{self._prefix}/{SHARDS_TABLE} is damaged", "run vitpipe verify")
        return [ShardEntry.model_validate(row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]

    def _open_caches(self) -> None:
        self._index = lru_cache(maxsize=_OPEN_SHARDS)(self._read_index)
        self._files: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_index", "_files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_caches()

    def keys(self, shard: int) -> list[str]:
        """Keys of the samples of a shard, in the order of its tar."""
        keys: list[str] = self._index(shard)["key"]
        return keys

    def read(self, shard: int, row: int) -> Sample:
        """The sample at *row* of *shard*. Raises SampleDamagedError.

        A shard from the cache is fetched once more before it is called damaged.
        """
        try:
            return self._read(shard, row)
        except SampleDamagedError:
            entry = self.shards[shard]
            if not self._cache.forget(f"{self._prefix}/{entry.name}", entry):
                raise
        os.close(self._files.pop(shard))
        return self._read(shard, row)

    def _read(self, shard: int, row: int) -> Sample:
        index = self._index(shard)
        key, offset, size = index["key"][row], index["image_offset"][row], index["image_bytes"][row]
        block = os.pread(self._file(shard), _HEADER_BYTES + size, offset - _HEADER_BYTES)
        data = block[_HEADER_BYTES:]
        name = f"{key}.{index['format'][row]}".encode()
        where = f"{self.shards[shard].name}: sample {key} at byte {offset}"
        if len(data) != size or block[: len(name) + 1] != name + b"\0":
            raise SampleDamagedError(f"{where}: no such member there", "run vitpipe verify")
        if self._check == "digest" and sha256_hex(data) != index["sha256"][row]:
            raise SampleDamagedError(f"{where}: its bytes are damaged", "run vitpipe verify")
        return Sample(key, data, tuple(index["labels"][row]))

    def close(self) -> None:
        """Close the shards that are open."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            while len(self._files) >= _OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            entry = self.shards[shard]
            try:
                self._files[shard] = os.open(self._cache.path(f"{self._prefix}/{entry.name}", entry), os.O_RDONLY)
            except FileNotFoundError:
                raise DamageError(f"{self._prefix}/{entry.name} is missing", "run vitpipe verify") from None
        return self._files[shard]

    def _read_index(self, shard: int) -> dict[str, list[Any]]:
        entry = self.shards[shard]
        key = f"{self._prefix}/{entry.name.removesuffix('.tar')}.parquet"
        data = self._workspace.read(key)
        if sha256_hex(data) != entry.index_sha256:
            raise DamageError(f"{key} is damaged", "run vitpipe verify")
        table: pa.Table = pq.read_table(io.BytesIO(data))
        columns: dict[str, list[Any]] = table.to_pydict()
        return columns
