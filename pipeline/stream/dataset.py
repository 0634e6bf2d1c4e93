"""A dataset opened for reading: card, shard table, indexes, and samples by offset, each checked when it is read.

What a check promises:

- ``digest``: the bytes of the sample are those that were sharded.
- ``header``: the member that the index names is there: its whole tar header is the expected one, and as many
  bytes follow as it says. A byte that was changed inside an image is not seen; when the decoder sees it, it says so.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import read_parquet
from pipeline.base.errors import DamageError
from pipeline.base.retry import RetryPolicy, in_background, read_object
from pipeline.base.store.protocol import Store
from pipeline.records.dataset import (
    HEADER_BYTES,
    SHARDS_TABLE,
    DatasetCard,
    ShardEntry,
    dataset_digest,
    dataset_prefix,
    member_header,
    read_dataset_card,
)
from pipeline.stream.cache import DEFAULT_LIMIT_BYTES, ArrivedDamagedError, ObjectMissingError, ShardCache
from pipeline.stream.disk_lru import NoRoomError
from pipeline.stream.index import SampleEntry, ShardIndex, ShardTable, parse_index

Check = Literal["digest", "header"]
Access = Literal["cached", "ranged"]
_INDEX_BYTES = 256_000_000  # of 3 million samples
_OPEN_SHARDS = 64
_REQUESTS = 16  # samples that are requested at a time when they are read by range
_MEND = "run vitpipe verify"


class Sample(NamedTuple):
    """One sample as stored."""

    key: str
    data: bytes
    labels: tuple[int, ...]


class SampleDamagedError(DamageError):
    """A sample that is missing, or not what the index says.

    ``shard`` is the name of its tar, ``reason`` what is wrong. When the index is lost, ``key`` is "row 7", and
    ``offset`` -1.
    """

    def __init__(self, shard: str, key: str, offset: int, reason: str) -> None:
        self.shard, self.key, self.offset, self.reason = shard, key, offset, reason
        sample = f"{shard}: sample {key} at byte {offset}" if offset >= 0 else f"{shard}: {key}"
        super().__init__(f"{sample}: {reason}", _MEND)

    def __reduce__(self) -> tuple[type[SampleDamagedError], tuple[str, str, int, str]]:
        return type(self), (self.shard, self.key, self.offset, self.reason)


class DatasetReader:
    """Reads samples of dataset *name* in *workspace*. Can be pickled; opens files where it is used. For one thread.

    *access*: ``cached`` fetches whole shards of a bucket into *cache*, ``ranged`` requests each sample. *open_shards*:
    as many as are read in turn, or shards are opened again and again. *retry* is for a store that goes away while
    samples are read; one that is away at the start is an error at once.
    """

    def __init__(  # noqa: PLR0913 - the ways of reading
        self,
        workspace: Store,
        name: str,
        *,
        check: Check = "digest",
        access: Access = "cached",
        cache: Path | None = None,
        cache_bytes: int = DEFAULT_LIMIT_BYTES,
        retry: RetryPolicy | None = None,
        open_shards: int = _OPEN_SHARDS,
        index_bytes: int = _INDEX_BYTES,
    ) -> None:
        self.card: DatasetCard = read_dataset_card(workspace, name)
        self._workspace, self._prefix = workspace, dataset_prefix(name)
        self._is_ranged = access == "ranged" and workspace.local_path(self._prefix) is None
        self._has_digest = check == "digest"
        self.retry = retry or RetryPolicy()
        self._cache = ShardCache(workspace, cache, cache_bytes, self.retry, verifies=not self._has_digest)
        self._limits = open_shards, index_bytes
        self.shards = self._read_shards()
        self._begin_empty()

    def _read_shards(self) -> ShardTable:
        key = f"{self._prefix}/{SHARDS_TABLE}"
        try:
            data = self._workspace.read(key)
        except FileNotFoundError:
            raise DamageError(f"{key} is missing", _MEND) from None
        if sha256_hex(data) != self.card.tables.get(SHARDS_TABLE):
            raise DamageError(f"{key} is damaged", _MEND)
        shards = ShardTable(read_parquet(data))
        if dataset_digest(shards.digests) != self.card.digest:
            raise DamageError(f"{key} is not the table of the dataset's card", _MEND)
        return shards

    def _begin_empty(self) -> None:
        self._files: OrderedDict[int, _OpenShard] = OrderedDict()  # the least recently used first
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lost: dict[int, str] = {}  # shards of which nothing can be read, and why
        self._pieced: set[int] = set()  # shards that are damaged in the bucket: what is left of them is read by range

    def __getstate__(self) -> dict[str, Any]:
        local = ("_files", "_indexes", "_lost", "_pieced")
        return {name: value for name, value in self.__dict__.items() if name not in local}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_empty()

    def keys(self, shard: int) -> list[str]:
        """Keys of the samples of a shard, in the order of its tar. Raises DamageError."""
        return self._index(shard).keys()

    def member(self, shard: int, row: int) -> SampleEntry:
        """Where a sample is in its tar, by the index. Raises DamageError."""
        return self._index(shard).member(row)

    def read(self, shard: int, row: int) -> Sample:
        """The sample at *row* of *shard*. Raises SampleDamagedError, and what ``ShardCache.open`` does.

        What the cache has damaged is fetched again, once for each opening of the shard.
        """
        return self._read(shard, row, None)

    def read_many(self, locations: Iterable[tuple[int, int]]) -> Iterator[Sample | SampleDamagedError]:
        """The samples at (shard, row), in their order; by range, several are requested at a time."""
        remaining = iter(locations)
        pending = [(shard, row, self._begin(shard, row)) for shard, row in islice(remaining, _REQUESTS)]
        while pending:
            shard, row, first = pending.pop(0)
            try:
                sample: Sample | SampleDamagedError = self._read(shard, row, first)
            except SampleDamagedError as error:
                sample = error
            pending += [(shard, row, self._begin(shard, row)) for shard, row in islice(remaining, 1)]
            yield sample

    def damaged(self, shard: int, row: int, reason: str) -> SampleDamagedError:
        """The error for a sample that was read, and is damaged for another *reason*: it cannot be decoded."""
        member = self._index(shard).member(row)
        return SampleDamagedError(self.shards[shard].name, member.key, member.offset, reason)

    def close(self) -> None:
        """Close the shards that are open."""
        for opened in self._files.values():
            os.close(opened.descriptor)
        self._files.clear()

    @property
    def is_ranged(self) -> bool:
        """True when samples are read by range: no shard is fetched."""
        return self._is_ranged

    def cache_with(self, retry: RetryPolicy) -> ShardCache:
        """The cache of this reader for a thread of its own, under another policy."""
        return self._cache.with_policy(retry)

    def bring(self, shard: int, cache: ShardCache) -> int | None:
        """Have *cache* hold shard and index; a descriptor that keeps the shard there, None while another process
        fetches it. In a folder the disk is asked to read ahead. For any thread. Raises as ``ShardCache.open``.
        """
        entry = self.shards[shard]
        descriptor = cache.open_unless_fetched(self._key(entry), entry)
        if descriptor is not None:
            with suppress(DamageError):  # reported when a sample is read
                cache.read_index(self._index_key(entry), entry.index_sha256)
            if self._workspace.local_path(self._prefix) is not None:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        return descriptor

    def _read(self, shard: int, row: int, first: Future[bytes] | None) -> Sample:
        try:
            member = self._index(shard).member(row)
        except DamageError as error:
            raise SampleDamagedError(self.shards[shard].name, f"row {row}", -1, error.message) from None
        fault = ""
        for request in (first, None):
            if shard in self._lost:
                break
            try:
                header, data = self._bytes(shard, member, request)
                fault = self._fault(shard, member, header, data)
            except (FileNotFoundError, ObjectMissingError):
                self._lost[shard] = f"{self._key(self.shards[shard])} is missing"
                break
            except OSError as error:  # of a disk
                fault = f"it cannot be read: {error.strerror}"
            if not fault:
                return Sample(member.key, data, member.labels)
            if not self._renew(shard):
                break
        raise SampleDamagedError(self.shards[shard].name, member.key, member.offset, self._lost.get(shard, fault))

    def _bytes(self, shard: int, member: SampleEntry, first: Future[bytes] | None) -> tuple[bytes, bytes]:
        """The bytes where the header should be, and those where the data should be."""
        descriptor = None if self._is_pieced(shard) else self._open(shard)
        if descriptor is None:
            request = self._request(shard, member)
            transfer = self.retry.start(f"{self._workspace.uri}/{self._key(self.shards[shard])}")
            block = transfer.call(request, first)
            return block[:HEADER_BYTES], block[HEADER_BYTES:]
        header = os.pread(descriptor, HEADER_BYTES, member.offset - HEADER_BYTES)
        return header, os.pread(descriptor, member.num_bytes, member.offset)  # two calls copy less than one and a slice

    def _begin(self, shard: int, row: int) -> Future[bytes] | None:
        """Request a sample that is read by range; what goes wrong here comes again, and is raised, when it is read."""
        if self._is_pieced(shard) and shard not in self._lost:
            with suppress(DamageError):
                return in_background(self._request(shard, self._index(shard).member(row)))
        return None

    def _request(self, shard: int, member: SampleEntry) -> Callable[[], bytes]:
        key, start = self._key(self.shards[shard]), member.offset - HEADER_BYTES
        return partial(self._workspace.read_range, key, start, HEADER_BYTES + member.num_bytes)

    def _is_pieced(self, shard: int) -> bool:
        return self._is_ranged or shard in self._pieced

    def _fault(self, shard: int, member: SampleEntry, header: bytes, data: bytes) -> str:
        expected = member_header(f"{member.key}.{member.format}", member.num_bytes)
        if len(data) != member.num_bytes or header != expected:
            return "no such member there"
        if (self._has_digest or shard in self._pieced) and sha256(data).digest() != member.sha256:
            return "its bytes are damaged"
        return ""

    def _renew(self, shard: int) -> bool:
        """Prepare for reading again what was read damaged; False when that would give the same."""
        if self._is_pieced(shard):
            return True
        opened = self._files.pop(shard, None)
        if opened is None:  # it could not be opened
            return False
        entry = self.shards[shard]
        can_renew = not opened.is_renewed and self._cache.forget(self._key(entry), entry, opened.descriptor)
        if not can_renew:
            self._files[shard] = opened
            return False
        os.close(opened.descriptor)
        self._open(shard, is_renewed=True)
        return True

    def _open(self, shard: int, is_renewed: bool = False) -> int | None:
        """A descriptor of the shard; None when it is damaged in the bucket."""
        opened = self._files.get(shard)
        if opened is not None:
            self._files.move_to_end(shard)
            return opened.descriptor
        while len(self._files) >= self._limits[0]:
            os.close(self._files.popitem(last=False)[1].descriptor)
        entry = self.shards[shard]
        # whole the second time: damage in the bucket is told from damage on the way
        cache = self._cache.verifying() if is_renewed else self._cache
        try:
            try:
                descriptor = cache.open(self._key(entry), entry)
            except NoRoomError:
                self.close()  # what is open and was evicted takes its place on the disk until now
                descriptor = cache.open(self._key(entry), entry)
        except ArrivedDamagedError:
            self._pieced.add(shard)
            return None
        self._files[shard] = _OpenShard(descriptor, is_renewed)
        return descriptor

    def _index(self, shard: int) -> ShardIndex:
        """Raises DamageError."""
        index = self._indexes.get(shard)
        if index is not None:
            self._indexes.move_to_end(shard)
            return index
        if shard in self._lost:
            raise DamageError(self._lost[shard], _MEND)
        try:
            index = self._read_index(self.shards[shard])
        except DamageError as error:
            self._lost[shard] = error.message
            raise
        self._indexes[shard] = index
        while len(self._indexes) > 1 and sum(cached.num_bytes for cached in self._indexes.values()) > self._limits[1]:
            self._indexes.popitem(last=False)
        return index

    def _read_index(self, entry: ShardEntry) -> ShardIndex:
        key = self._index_key(entry)
        if not self._is_ranged:
            return parse_index(self._cache.read_index(key, entry.index_sha256), entry, key)
        try:
            data = read_object(self._workspace, key, self.retry)  # nothing goes to the disk
        except FileNotFoundError:
            raise DamageError(f"{key} is missing", _MEND) from None
        if sha256_hex(data) != entry.index_sha256:
            raise DamageError(f"{key} is damaged", _MEND)
        return parse_index(data, entry, key)

    def _key(self, entry: ShardEntry) -> str:
        return f"{self._prefix}/{entry.name}"

    def _index_key(self, entry: ShardEntry) -> str:
        return f"{self._prefix}/{entry.name.removesuffix('.tar')}.parquet"


class _OpenShard(NamedTuple):
    """``is_renewed``: it was fetched again because of damage."""

    descriptor: int
    is_renewed: bool
