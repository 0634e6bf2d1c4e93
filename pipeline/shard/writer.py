"""Write one shard: read its images, check them, append them to a tar, and index it.

The tar is a USTAR archive whose bytes depend on its samples alone. Its writer is our own, since
``webdataset.TarWriter`` loads torch (2.6 s and 220 MB in every process) and gives no offsets; what it writes is
checked against stock webdataset by ``verify.py`` and the tests.

Tar and index are written to files as the samples come, so memory does not grow with the shard. The index is put after
the tar, because its footer holds the size and the digest of the complete tar, with the rejects and the statistics. The
note below ``work/`` is put last, with the digests of plan and index: a shard with that note is complete, and a rerun
skips it. The plan's digest covers the etags of what was read. So it is in the note only, which is removed once the
dataset is published, and in no file that stays: equal images give equal bytes, wherever and whenever they were copied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.errors import DamageError, SupersededError
from pipeline.base.failpoints import fail_point
from pipeline.base.store.protocol import ObjectChangedError, Store
from pipeline.images.check import CheckOptions, CheckResult
from pipeline.images.decode import ImageRejectedError, read_header
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.corpus import CorpusReader, Reject, key_of
from pipeline.records.dataset import CARD, WORK, ShardEntry, member_header
from pipeline.shard.index import IndexFooter, IndexWriter, ShardStatistics, index_name, label_member, parse_footer
from pipeline.shard.plan import PlannedShard, shard_name, table_bytes
from pipeline.shard.recipe import ShardRecipe

_BLOCK = 512  # bytes; tar pads a member to whole blocks
_RECORD = 20 * _BLOCK  # bytes that tar pads an archive to
_WRITE_BUFFER = 1 << 20  # bytes
_WRITEBACK_BYTES = 8 << 20  # written between two requests to the kernel to put them on the disk
_READ_ROWS = 1_024  # entries that are Python objects at a time

_Entry = tuple[int, dict[str, Any]]  # an entry's position in the plan, and its origin and labels
_Outcome = CheckResult | ImageRejectedError


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


def plan_digest(shard: PlannedShard, format_fingerprint: str) -> str:
    """Digest of all that the shard's bytes depend on, and of the state in which the images were listed."""
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

    With *expected*, a tar or index with another digest is not put, but a DamageError; and there is no note, as the
    dataset has a card. Without it, nothing is put once a card is there: that is SupersededError.
    """
    rejects: dict[int, Reject] = {}  # by position in the plan: the sandbox reads ahead of what it yields
    statistics = ShardStatistics()
    with target.incoming(index_name(shard.name)) as index_path:
        index = IndexWriter(index_path)
        try:
            facts = _write_tar(shard, reader, target, recipe, _Outputs(index, rejects, statistics, expected))
        except _NothingWrittenError:
            facts = {"name": shard.name, "num_bytes": 0, "sha256": "", "num_samples": 0}
        fail_point("shard.after-tar")
        footer = IndexFooter(facts, tuple(rejects[position] for position in sorted(rejects)), statistics)
        index.close(footer)
        index_sha256 = _file_sha256(index_path)
        if expected is not None and index_sha256 != (expected.index or index_sha256):
            raise _source_changed(target, index_name(shard.name))
    fail_point("shard.after-index")
    if expected is None:
        target.put(_note_name(shard.number), _note(plan, index_sha256))
    return _written(shard.number, footer, index_sha256)


class _NothingWrittenError(Exception):
    """Every image was rejected: there is no tar to put."""


@dataclass(frozen=True)
class _Outputs:
    """What is filled while a tar is written; *expected*: see ``write_shard``."""

    index: IndexWriter
    rejects: dict[int, Reject]
    statistics: ShardStatistics
    expected: ExpectedDigests | None


def _write_tar(
    shard: PlannedShard, reader: CorpusReader, target: Store, recipe: ShardRecipe, outputs: _Outputs
) -> dict[str, Any]:
    """Write the tar, and fill *outputs* on the way; the facts of the shard's entry."""
    statistics = outputs.statistics
    with target.incoming(shard.name) as path:
        with path.open("wb", buffering=_WRITE_BUFFER) as file:
            tar, num_sent = TarWriter(file), 0
            for (position, entry), data, outcome in checked_entries(shard.entries, reader, recipe, outputs.rejects):
                if isinstance(outcome, ImageRejectedError):
                    outputs.rejects[position] = Reject(entry["origin"], outcome.reason, outcome.detail)
                else:
                    outputs.index.add(_add_sample(tar, entry, outcome.data or data, outcome))
                    statistics.add(entry["labels"], outcome)
                num_sent = _start_writeback(file, num_sent, tar.num_bytes)
            digest = tar.close()
        if not statistics.num_samples:
            raise _NothingWrittenError
        _check_may_put(target, shard.name, digest, outputs.expected)
        target.delete(_note_name(shard.number))  # of an earlier plan, for another tar of perhaps the same size
        fail_point("shard.before-tar")
    return {"name": shard.name, "num_bytes": tar.num_bytes, "sha256": digest, "num_samples": statistics.num_samples}


def _add_sample(tar: TarWriter, entry: dict[str, Any], data: bytes, checked: CheckResult) -> dict[str, Any]:
    """Append the label and the image of a sample; its row of the index."""
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


def _start_writeback(file: BinaryIO, num_sent: int, num_bytes: int) -> int:
    """Have the kernel write *file* to the disk on the way, so that its fsync is short; the bytes sent so far."""
    if num_bytes - num_sent < _WRITEBACK_BYTES or not hasattr(os, "posix_fadvise"):
        return num_sent
    file.flush()
    os.posix_fadvise(file.fileno(), num_sent, num_bytes - num_sent, os.POSIX_FADV_DONTNEED)
    return num_bytes


def _check_may_put(target: Store, name: str, digest: str, expected: ExpectedDigests | None) -> None:
    if expected is not None and digest != (expected.tar or digest):
        raise _source_changed(target, name)
    if expected is None and target.head(CARD) is not None:
        raise SupersededError(f"{target.uri}: another writer has published this dataset meanwhile")


def _source_changed(target: Store, name: str) -> DamageError:
    return DamageError(
        f"{target.uri}/{name} cannot be made again: the source has changed", "shard the corpus under another name"
    )


def find_written(number: int, target: Store, plan: str) -> WrittenShard | None:
    """The shard as an earlier attempt left it that had the same plan, or None when it has to be written."""
    try:
        note = target.read(_note_name(number))
        index = target.read(index_name(shard_name(number)))
    except OSError:
        return None
    return _from_index(number, target, index) if note == _note(plan, sha256_hex(index)) else None


def find_undamaged(number: int, target: Store, expected: ExpectedDigests) -> WrittenShard | None:
    """The shard of a dataset with a card, of whatever plan; None when its tar or its index has to be made again.

    The bytes of its tar were digested before; here only its size is compared, and its index with *expected*.
    """
    try:
        index = target.read(index_name(shard_name(number)))
    except OSError:
        return None
    index_sha256 = sha256_hex(index)
    if index_sha256 != (expected.index or index_sha256):
        return None
    return _from_index(number, target, index)


def _from_index(number: int, target: Store, index: bytes) -> WrittenShard | None:
    """The shard that *index* describes, if there is a tar of that size."""
    footer = parse_footer(index)
    if footer is None:
        return None
    info = target.head(shard_name(number))
    if footer.facts["num_samples"] and (info is None or info.num_bytes != footer.facts["num_bytes"]):
        return None
    return _written(number, footer, sha256_hex(index))


def _written(number: int, footer: IndexFooter, index_sha256: str) -> WrittenShard:
    entry = ShardEntry(**footer.facts, index_sha256=index_sha256) if footer.facts["num_samples"] else None
    return WrittenShard(number, entry, footer.rejects, footer.statistics)


def _note_name(number: int) -> str:
    return f"{WORK}/made-{number:06d}"


def _note(plan: str, index_sha256: str) -> bytes:
    return f"{plan} {index_sha256}\n".encode()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_entries(
    entries: pa.Table, reader: CorpusReader, recipe: ShardRecipe, rejects: dict[int, Reject]
) -> Iterator[tuple[_Entry, bytes, _Outcome]]:
    """Read and check the images of *entries*, in their order: (position, entry), bytes, and what the check gives.

    Images that cannot be read go to *rejects*, by position.
    """
    yield from _check(_read(entries, reader, rejects), recipe)


def _read(entries: pa.Table, reader: CorpusReader, rejects: dict[int, Reject]) -> Iterator[tuple[_Entry, bytes]]:
    images = reader.read(entries)
    columns = entries.select(["origin", "labels"])
    for start in range(0, entries.num_rows, _READ_ROWS):
        for position, entry in enumerate(columns.slice(start, _READ_ROWS).to_pylist(), start):
            try:
                data = next(images)
            except OSError as error:
                reason = "changed" if isinstance(error, ObjectChangedError) else "unreadable"
                rejects[position] = Reject(entry["origin"], reason, type(error).__name__)
                continue
            if data is None:
                rejects[position] = Reject(entry["origin"], "null-image")
            else:
                yield (position, entry), data


def _check(images: Iterator[tuple[_Entry, bytes]], recipe: ShardRecipe) -> Iterator[tuple[_Entry, bytes, _Outcome]]:
    if recipe.check == "full":
        yield from shared_sandbox(CheckOptions(statistics=True, reencode=recipe.resize)).check(images)
        return
    for entry, data in images:
        try:
            facts = read_header(data)
        except ImageRejectedError as error:
            yield entry, data, error
        else:
            yield entry, data, CheckResult(facts, facts.width * facts.height)


class TarWriter:
    """Writes members to *file* as they come, and retains none of them. Owner, mode and time are fixed."""

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
