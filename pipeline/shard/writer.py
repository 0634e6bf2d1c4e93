"""The bytes of a shard: a USTAR archive whose bytes depend on its samples alone.

Our own writer, since ``webdataset.TarWriter`` loads torch (2.6 s and 220 MB in every task) and gives no offsets.
What it writes is checked against stock webdataset by ``interchange.py`` and the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import DamageError, SupersededError
from pipeline.base.failpoints import fail_point
from pipeline.base.store.protocol import ObjectChangedError, Store
from pipeline.images.check import CheckOptions, CheckResult
from pipeline.images.decode import ImageRejectedError, read_header
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.corpus import CorpusReader, Reject, key_of
from pipeline.records.dataset import CARD, WORK, ShardEntry, member_header
from pipeline.shard.index import _ENTRY, _REJECTS, _STATISTICS, ShardStatistics, _Index, index_name, label_member
from pipeline.shard.plan import PlannedShard, shard_name, table_bytes
from pipeline.shard.recipe import ShardRecipe

_BLOCK = 512
_RECORD = 20 * _BLOCK  # what tar pads an archive to


class ShardTar:
    """Writes members to *file* as they come; nothing of them is kept. Owner, mode and time are fixed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its data in the archive, in bytes."""
        self._write(member_header(name, len(data)))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def close(self) -> str:
        """Write the two zero blocks and the padding that end an archive; returns its sha256."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self.num_bytes % _RECORD))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)


_SETTLE_BYTES = 8 << 20
_READ_ROWS = 1_024  # entries that are looked at as Python objects at a time


@dataclass(frozen=True)
class WrittenShard:
    """What became of one planned shard; ``entry`` is None when every image of it was rejected."""

    number: int
    entry: ShardEntry | None
    rejects: tuple[Reject, ...]
    statistics: ShardStatistics


@dataclass(frozen=True)
class ExpectedDigests:
    """The digests that a card's table names for a shard that is made again; "" where the table is lost."""

    tar: str = ""
    index: str = ""


class _NothingWrittenError(Exception):
    """Every image was rejected: there is no tar to keep."""


def plan_digest(shard: PlannedShard, format_fingerprint: str) -> str:
    """What the shard's bytes depend on, and the state in which the images were listed."""
    return fingerprint([format_fingerprint, sha256_hex(table_bytes(shard.entries))])


def write_shard(
    shard: PlannedShard,
    reader: CorpusReader,
    target: Store,
    plan: str,
    recipe: ShardRecipe,
    expected: ExpectedDigests | None = None,
) -> WrittenShard:
    """Write *shard* and its index into *target*, and the note that it is done. *plan* is its plan digest.

    With *expected*, a tar or index with another digest is not put, but a DamageError; and there is no note, as a card
    stands. Without it, nothing is put where a card stands: that is SupersededError.
    """
    rejects: dict[int, Reject] = {}  # by place in the plan: the sandbox works ahead of what it gives back
    statistics = ShardStatistics()
    with target.incoming(index_name(shard.name)) as index_path:
        index = _Index(index_path)
        try:
            facts = _write_tar(shard, reader, target, recipe, _Sinks(index, rejects, statistics, expected))
        except _NothingWrittenError:
            facts = {"name": shard.name, "num_bytes": 0, "sha256": "", "num_samples": 0}
        fail_point("shard.after-tar")
        found = tuple(rejects[place] for place in sorted(rejects))
        index.close(facts, found, statistics)
        index_sha256 = _file_sha256(index_path)
        if expected is not None and index_sha256 != (expected.index or index_sha256):
            raise _source_changed(target, index_name(shard.name))
    fail_point("shard.after-index")
    if expected is None:
        target.put(_note_name(shard.number), _note(plan, index_sha256))
    return _written(shard.number, facts, found, statistics, index_sha256)


def find_written(number: int, target: Store, plan: str) -> WrittenShard | None:
    """The shard as an earlier attempt left it that had the same plan, or None when it has to be written."""
    try:
        note = target.read(_note_name(number))
        index = target.read(index_name(shard_name(number)))
    except OSError:
        return None
    return _standing(number, target, index) if note == _note(plan, sha256_hex(index)) else None


def find_undamaged(number: int, target: Store, expected: ExpectedDigests) -> WrittenShard | None:
    """The shard of a dataset with a card, of whatever plan; None when its tar or its index has to be made again.

    Its tar was digested before: here its size is looked at, and that the index is the one of that tar.
    """
    try:
        index = target.read(index_name(shard_name(number)))
    except OSError:
        return None
    index_sha256 = sha256_hex(index)
    if index_sha256 != (expected.index or index_sha256):
        return None
    return _standing(number, target, index)


def _standing(number: int, target: Store, index: bytes) -> WrittenShard | None:
    """What *index* tells of the shard, if a tar of that size is there."""
    try:
        found = pq.ParquetFile(pa.BufferReader(index)).metadata.metadata
        facts, rejects = json.loads(found[_ENTRY]), tuple(Reject(**item) for item in json.loads(found[_REJECTS]))
        statistics = ShardStatistics.from_json(found[_STATISTICS].decode())
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError):
        return None  # a file of others
    info = target.head(shard_name(number))
    if facts["num_samples"] and (info is None or info.num_bytes != facts["num_bytes"]):
        return None
    return _written(number, facts, rejects, statistics, sha256_hex(index))


def _note_name(number: int) -> str:
    return f"{WORK}/made-{number:06d}"


def _note(plan: str, index_sha256: str) -> bytes:
    return f"{plan} {index_sha256}\n".encode()


def _written(
    number: int, facts: dict[str, Any], rejects: tuple[Reject, ...], statistics: ShardStatistics, index_sha256: str
) -> WrittenShard:
    entry = ShardEntry(**facts, index_sha256=index_sha256) if facts["num_samples"] else None
    return WrittenShard(number, entry, rejects, statistics)


@dataclass(frozen=True)
class _Sinks:
    """Where what is learned of a shard goes while its tar is written."""

    index: _Index
    rejects: dict[int, Reject]
    statistics: ShardStatistics
    expected: ExpectedDigests | None


def _write_tar(
    shard: PlannedShard, reader: CorpusReader, target: Store, recipe: ShardRecipe, sinks: _Sinks
) -> dict[str, Any]:
    checked = checked_entries(shard.entries, reader, recipe, sinks.rejects)
    with target.incoming(shard.name) as path:
        with path.open("wb", buffering=1 << 20) as file:
            tar, settled = ShardTar(file), 0
            for (place, entry), data, outcome in checked:
                if isinstance(outcome, ImageRejectedError):
                    sinks.rejects[place] = Reject(entry["origin"], outcome.reason, outcome.detail)
                else:
                    sinks.index.add(_add(tar, entry, outcome.data or data, outcome))
                    sinks.statistics.add(entry["labels"], outcome)
                settled = _settle(file, settled, tar.num_bytes)
            digest = tar.close()
        if not sinks.statistics.num_samples:
            raise _NothingWrittenError
        _check_place(target, shard.name, digest, sinks.expected)
        target.delete(_note_name(shard.number))  # of an earlier plan, for another tar of perhaps the same size
        fail_point("shard.before-tar")
    num_samples = sinks.statistics.num_samples
    return {"name": shard.name, "num_bytes": tar.num_bytes, "sha256": digest, "num_samples": num_samples}


def _settle(file: BinaryIO, settled: int, num_bytes: int) -> int:
    """Have the kernel write *file* to the disk on the way, so that its fsync is short. How far that was asked for."""
    if num_bytes - settled < _SETTLE_BYTES or not hasattr(os, "posix_fadvise"):
        return settled
    file.flush()
    os.posix_fadvise(file.fileno(), settled, num_bytes - settled, os.POSIX_FADV_DONTNEED)
    return num_bytes


def _check_place(target: Store, name: str, digest: str, expected: ExpectedDigests | None) -> None:
    if expected is not None and digest != (expected.tar or digest):
        raise _source_changed(target, name)
    if expected is None and target.head(CARD) is not None:
        raise SupersededError(f"{target.uri}: another writer has published this dataset meanwhile")


def _source_changed(target: Store, name: str) -> DamageError:
    return DamageError(
        f"{target.uri}/{name} cannot be made again: the source has changed", "shard the corpus under another name"
    )


_Item = tuple[int, dict[str, Any]]  # an entry's place in the plan, and the entry
_Outcome = CheckResult | ImageRejectedError


def checked_entries(
    entries: pa.Table, reader: CorpusReader, recipe: ShardRecipe, rejects: dict[int, Reject]
) -> Iterator[tuple[_Item, bytes, _Outcome]]:
    """Place and entry, bytes, and what the check says, in their order. What cannot be read goes to *rejects*."""
    yield from _check(_read(entries, reader, rejects), recipe)


def _read(entries: pa.Table, reader: CorpusReader, rejects: dict[int, Reject]) -> Iterator[tuple[_Item, bytes]]:
    images = reader.read(entries)
    columns = entries.select(["origin", "labels"])
    for start in range(0, entries.num_rows, _READ_ROWS):
        for place, entry in enumerate(columns.slice(start, _READ_ROWS).to_pylist(), start):
            try:
                data = next(images)
            except OSError as error:
                rejects[place] = Reject(entry["origin"], _reason(error), type(error).__name__)
                continue
            if data is None:
                rejects[place] = Reject(entry["origin"], "null-image")
            else:
                yield (place, entry), data


def _reason(error: OSError) -> str:
    return "changed" if isinstance(error, ObjectChangedError) else "unreadable"


def _check(images: Iterator[tuple[_Item, bytes]], recipe: ShardRecipe) -> Iterator[tuple[_Item, bytes, _Outcome]]:
    if recipe.check == "full":
        yield from shared_sandbox(CheckOptions(statistics=True, reencode=recipe.resize)).check(images)
        return
    for item, data in images:
        try:
            facts = read_header(data)
        except ImageRejectedError as error:
            yield item, data, error
        else:
            yield item, data, CheckResult(facts, facts.width * facts.height)


def _add(tar: ShardTar, entry: dict[str, Any], data: bytes, checked: CheckResult) -> dict[str, Any]:
    key, labels, facts = key_of(entry["origin"]), entry["labels"], checked.facts
    label_name, label = label_member(labels)
    label_offset = tar.add(f"{key}.{label_name}", label)
    image_offset = tar.add(f"{key}.{facts.format}", data)
    return {
        "key": key,
        "labels": labels,
        "image_offset": image_offset,
        "image_bytes": len(data),
        "label_offset": label_offset,
        "label_bytes": len(label),
        "sha256": sha256_hex(data),
        "width": facts.width,
        "height": facts.height,
        "format": facts.format,
        "origin": entry["origin"],
    }


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
