"""A shard's index as a few compact buffers, and the table of a dataset's shards. Nothing here is a list per sample.

About 80 bytes a sample; 10,000 of them are read in a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base.errors import DamageError
from pipeline.records.corpus import KEY_DIGITS
from pipeline.records.dataset import HEADER_BYTES, SHARDS_SCHEMA, ShardEntry

_DIGEST_BYTES = 32
_CACHED_ENTRIES = 4096
_COLUMNS = ["key", "labels", "image_offset", "image_bytes", "sha256", "format"]


class SampleEntry(NamedTuple):
    """Where a sample is in its tar, and what it should be. ``sha256`` is the digest's 32 bytes."""

    key: str
    format: str
    offset: int
    num_bytes: int
    sha256: bytes
    labels: tuple[int, ...]


class ShardIndex:
    """The rows of one index. Made by ``parse_index``."""

    def __init__(
        self,
        keys: bytes,
        digests: bytes,
        extents: tuple[NDArray[np.int64], NDArray[np.int64]],
        formats: tuple[tuple[str, ...], bytes],
        labels: tuple[NDArray[np.int64], NDArray[np.int32]],
    ) -> None:
        self._keys, self._digests = keys, digests
        self._offsets, self._sizes = extents
        self._formats, self._format_codes = formats
        self._label_starts, self._labels = labels

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        arrays = (self._offsets, self._sizes, self._label_starts, self._labels)
        return sum(array.nbytes for array in arrays) + len(self._keys) + len(self._digests) + len(self._format_codes)

    def member(self, row: int) -> SampleEntry:
        """The sample at *row*. Raises IndexError."""
        if not 0 <= row < len(self._offsets):
            raise IndexError(row)
        first, stop = self._label_starts[row : row + 2].tolist()
        return SampleEntry(
            self.key(row),
            self._formats[self._format_codes[row]],
            self._offsets.item(row),
            self._sizes.item(row),
            self._digests[row * _DIGEST_BYTES : (row + 1) * _DIGEST_BYTES],
            tuple(self._labels[first:stop].tolist()),
        )

    def key(self, row: int) -> str:
        """The key of the sample at *row*."""
        return self._keys[row * KEY_DIGITS : (row + 1) * KEY_DIGITS].decode("ascii")

    def keys(self) -> list[str]:
        """All keys, in the order of the tar."""
        return [self.key(row) for row in range(len(self))]


def parse_index(data: bytes, entry: ShardEntry, key: str) -> ShardIndex:
    """The index in the parquet bytes *data*, whose digest was compared. Raises DamageError naming *key*."""
    try:
        table = pq.read_table(pa.BufferReader(data), columns=_COLUMNS, read_dictionary=["format"], use_threads=False)
        table = table.combine_chunks()
        index = _from_table(table)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamageError(f"{key} cannot be read: {type(error).__name__}", "run vitpipe verify") from None
    if len(index) != entry.num_samples or not _fits(table, entry):
        raise DamageError(f"{key} is not the index of {entry.name}", "run vitpipe verify")
    return index


def _from_table(table: pa.Table) -> ShardIndex:
    """Raises ValueError for columns that are not as ``shard`` writes them."""
    if any(column.null_count for column in table.columns):
        raise ValueError("nulls")
    rows = table.num_rows
    formats = _one_chunk(table["format"].unify_dictionaries())
    labels = _one_chunk(table["labels"])
    starts = labels.offsets.to_numpy().astype(np.int64)
    return ShardIndex(
        keys=_joined(table["key"], KEY_DIGITS * rows, KEY_DIGITS),
        digests=bytes.fromhex(_joined(table["sha256"], 2 * _DIGEST_BYTES * rows, 2 * _DIGEST_BYTES).decode("ascii")),
        extents=(_numbers(table["image_offset"]), _numbers(table["image_bytes"])),
        formats=(tuple(formats.dictionary.to_pylist()), formats.indices.cast(pa.uint8()).to_numpy().tobytes()),
        labels=(starts - starts[0], labels.flatten().to_numpy().copy()),
    )


def _fits(table: pa.Table, entry: ShardEntry) -> bool:
    """True when every sample lies inside the shard."""
    if not table.num_rows:
        return True
    offsets, sizes = _numbers(table["image_offset"]), _numbers(table["image_bytes"])
    return bool(offsets.min() >= HEADER_BYTES and sizes.min() >= 0 and (offsets + sizes).max() <= entry.num_bytes)


def _one_chunk(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.array(column.to_numpy(), dtype=np.int64)


def _joined(column: pa.ChunkedArray, num_bytes: int, width: int) -> bytes:
    """The strings of *column*, each *width* ASCII characters long, one behind the other."""
    lengths = pc.binary_length(column)
    if len(column) and (pc.min(lengths).as_py(), pc.max(lengths).as_py()) != (width, width):
        raise ValueError("lengths")
    texts = _one_chunk(column)
    start, buffer = texts.offset * width, texts.buffers()[2]
    joined = buffer.to_pybytes()[start : start + num_bytes] if buffer is not None else b""
    if len(joined) != num_bytes or not joined.isascii():
        raise ValueError("characters")
    return joined


class ShardTable(Sequence[ShardEntry]):
    """The shards of a dataset in the order of its card: entries are made on demand."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.cast(SHARDS_SCHEMA).combine_chunks()
        self._cached: dict[int, ShardEntry] = {}  # those in use are read again and again

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, at: int) -> ShardEntry: ...

    @overload
    def __getitem__(self, at: slice) -> list[ShardEntry]: ...

    def __getitem__(self, at: int | slice) -> ShardEntry | list[ShardEntry]:
        if not isinstance(at, slice) and (cached := self._cached.get(at)) is not None:
            return cached
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        if len(self._cached) >= _CACHED_ENTRIES:
            self._cached.clear()
        row = {name: self._table[name][at % len(self)].as_py() for name in SHARDS_SCHEMA.names}
        return self._cached.setdefault(at, ShardEntry(**row))

    def __getstate__(self) -> dict[str, Any]:
        return {"_table": self._table, "_cached": {}}

    def __iter__(self) -> Iterator[ShardEntry]:
        for batch in self._table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield ShardEntry(**row)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many samples each shard has, (shards,)."""
        return _numbers(self._table["num_samples"])

    @property
    def digests(self) -> list[str]:
        """The sha256 of each shard."""
        digests: list[str] = self._table["sha256"].to_pylist()
        return digests
