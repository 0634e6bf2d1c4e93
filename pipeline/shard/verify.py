"""Compare what is stored with what the card says, and name what is damaged.

Three depths: ``fast`` looks at cards, tables and sizes; ``bytes`` (the default) digests every file as well;
``full`` also reads every sample through its index, decodes it, compares its label, counts everything again, and has
stock webdataset read the same keys. Each problem begins with the name of its file. The only door to webdataset.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import differing_fields, sha256_hex
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.images.check import CheckOptions, CheckResult
from pipeline.images.decode import ImageRejectedError
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.corpus import key_of
from pipeline.records.dataset import (
    CARD,
    DUPLICATES_TABLE,
    INDEX_SCHEMA,
    REJECTS_TABLE,
    SHARDS_TABLE,
    DatasetCard,
    ShardEntry,
    dataset_digest,
    member_header,
)
from pipeline.records.record import read_record
from pipeline.shard.commit import is_consistent, read_shards
from pipeline.shard.index import ShardStatistics, index_name, label_member
from pipeline.shard.writer import TarWriter

Depth = Literal["fast", "bytes", "full"]
_HEADER_BYTES = 512  # of a tar member
_BATCH_ROWS = 1_024  # rows of an index in memory at a time
_SHOWN = 3  # differing fields of a card that are named


def verify_dataset(target: Store, depth: Depth, progress: Progress) -> list[str]:
    """Every problem of the dataset, one line each; empty when all is well.

    Raises FileNotFoundError when there is no card, DamageError when the card itself is damaged.
    """
    card = read_record(DatasetCard, target, CARD)
    problems = _check_card(card)
    for name, num_rows in ((REJECTS_TABLE, card.num_rejected), (DUPLICATES_TABLE, card.num_duplicates)):
        problems += _check_table(target, card, name, num_rows)
    unreadable = _check_table(target, card, SHARDS_TABLE, None)
    if unreadable:
        return problems + unreadable
    try:
        shards = read_shards(target, card)
    except ValueError:  # pydantic's, of rows
        return [*problems, f"{SHARDS_TABLE}: its rows do not name shards"]
    problems += _check_totals(card, shards)
    recount = _Recount()
    progress.start(f"verify {card.name}", len(shards))
    for shard in shards:
        problems += _check_shard(target, shard, depth, recount)
        progress.advance(note=f"{len(problems)} problems" if problems else "")
    progress.finish()
    if depth == "full" and not problems:
        problems += recount.differences(card)
    return problems


def _check_card(card: DatasetCard) -> list[str]:
    """Whether the card's numbers agree with each other."""
    problems, statistics = [], card.statistics
    if card.num_input != card.num_samples + card.num_rejected + card.num_duplicates:
        problems.append(
            f"{CARD}: input {card.num_input} is not written {card.num_samples} + rejected {card.num_rejected}"
            f" + duplicates {card.num_duplicates}"
        )
    if not is_consistent(card):
        problems.append(f"{CARD}: its fingerprint is not that of its recipe, listing and class names")
    for name in ("formats", "short_sides", "aspects"):
        if sum(getattr(statistics, name).values()) != card.num_samples:
            problems.append(f"{CARD}: its {name} do not add up to {card.num_samples} samples")
    if len(statistics.label_counts) != len(card.class_names):
        problems.append(f"{CARD}: counts {len(statistics.label_counts)} classes, names {len(card.class_names)}")
    return problems


def _check_table(target: Store, card: DatasetCard, name: str, expected_rows: int | None) -> list[str]:
    """Whether a table is there and the one that the card names; *expected_rows*: None for any number."""
    if name not in card.tables:
        return [f"{CARD}: names no digest of {name}"]
    if target.head(name) is None:
        return [f"{name}: missing"]
    with _as_file(target, name) as path:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != card.tables[name]:
                return [f"{name}: damaged, its sha256 is not the one in {CARD}"]
        try:
            num_rows = pq.read_metadata(path).num_rows
        except (ValueError, OSError):
            return [f"{name}: cannot be read as parquet"]
    if expected_rows is None or num_rows == expected_rows:
        return []
    return [f"{name}: {num_rows} rows, the card says {expected_rows}"]


def _check_totals(card: DatasetCard, shards: list[ShardEntry]) -> list[str]:
    """Whether the table of shards adds up to the card."""
    problems = []
    if len(shards) != card.num_shards:
        problems.append(f"{SHARDS_TABLE}: {len(shards)} shards, the card says {card.num_shards}")
    if sum(shard.num_bytes for shard in shards) != card.num_bytes:
        problems.append(f"{SHARDS_TABLE}: the shards' bytes do not add up to the card's {card.num_bytes}")
    if dataset_digest([shard.sha256 for shard in shards]) != card.digest:
        problems.append(f"{SHARDS_TABLE}: the shards' digests do not give the card's dataset digest")
    if sum(shard.num_samples for shard in shards) != card.num_samples:
        problems.append(f"{SHARDS_TABLE}: the shards' samples do not add up to the card's {card.num_samples}")
    return problems


def check_shard(target: Store, shard: ShardEntry, depth: Depth) -> list[str]:
    """The problems of one shard and its index."""
    return _check_shard(target, shard, depth, _Recount())


def _check_shard(target: Store, shard: ShardEntry, depth: Depth, recount: _Recount) -> list[str]:
    """The same; at full depth its samples are added to *recount*."""
    index_problems, tar_problems = _check_index(target, shard, depth), _check_size(target, shard)
    if depth == "fast" or tar_problems:
        return index_problems + tar_problems
    with _as_file(target, shard.name) as path, path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            tar_problems.append(f"{shard.name}: damaged, its sha256 is not the one in {SHARDS_TABLE}")
        if not index_problems and (depth == "full" or tar_problems):
            index = target.read(index_name(shard.name))
            tar_problems += _check_samples(shard, file, index, recount if depth == "full" else None)
    return index_problems + tar_problems


def _check_size(target: Store, shard: ShardEntry) -> list[str]:
    info = target.head(shard.name)
    if info is None:
        return [f"{shard.name}: missing"]
    if info.num_bytes != shard.num_bytes:
        return [f"{shard.name}: {info.num_bytes} bytes, {SHARDS_TABLE} says {shard.num_bytes}"]
    return []


def _check_index(target: Store, shard: ShardEntry, depth: Depth) -> list[str]:
    name = index_name(shard.name)
    if target.head(name) is None:
        return [f"{name}: missing"]
    if depth != "fast" and sha256_hex(target.read(name)) != shard.index_sha256:
        return [f"{name}: damaged, its sha256 is not the one in {SHARDS_TABLE}"]
    return []


@contextmanager
def _as_file(target: Store, key: str) -> Iterator[Path]:
    """The object as a local file: as it is stored, or fetched for the time of the block."""
    path = target.local_path(key)
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vitpipe-verify-") as folder:
        target.fetch(key, Path(folder) / "object")
        yield Path(folder) / "object"


@dataclass
class _Recount:
    """What the samples themselves add up to."""

    statistics: ShardStatistics = field(default_factory=ShardStatistics)

    def differences(self, card: DatasetCard) -> list[str]:
        """Where the card says something else, as ``field: the card's -> counted``; the first few fields."""
        if not self.statistics.num_samples:
            return [f"{CARD}: counted no samples, the card says {card.num_samples}"]
        num_classes = len(card.class_names)
        outside = sum(count for label, count in self.statistics.labels.items() if int(label) >= num_classes)
        if outside:
            return [f"{CARD}: {outside} labels are beyond its {num_classes} classes"]
        counted: dict[str, Any] = self.statistics.summary(num_classes).model_dump(mode="json")
        stated: dict[str, Any] = card.statistics.model_dump(mode="json")
        if not _shows_originals(card):
            for name in ("channel_mean", "channel_std"):
                del counted[name], stated[name]
        for tree in (counted, stated):
            tree["label_counts"] = dict(zip(card.class_names, tree["label_counts"], strict=True))
        return [f"{CARD}: counted again: {line}" for line in differing_fields(counted, stated)[:_SHOWN]]


def _shows_originals(card: DatasetCard) -> bool:
    """Whether the pixels that the card's colours are of are those that are stored."""
    resize = card.recipe.get("resize")
    return card.recipe.get("check") == "full" and isinstance(resize, dict) and resize.get("mode") == "keep"


def _check_samples(shard: ShardEntry, archive: BinaryIO, index: bytes, recount: _Recount | None) -> list[str]:
    """The problems of the samples of *shard*, whose bytes are *archive* and whose index file is *index*.

    Without *recount* this only names the samples that are damaged, and decodes nothing.
    """
    checker = _SampleChecker(shard, archive)
    try:
        intact = checker.intact_samples(pq.ParquetFile(pa.BufferReader(index)))
        if recount is None:
            for _ in intact:
                pass
        else:
            checker.check_images(intact, recount)
    except _NoIndexError as error:
        return [f"{index_name(shard.name)}: {error}"]
    except (pa.ArrowException, OSError):
        return [f"{index_name(shard.name)}: cannot be read as parquet"]
    if len(checker.keys) != shard.num_samples:
        counts = f"{len(checker.keys)} samples, {SHARDS_TABLE} says {shard.num_samples}"
        checker.problems.append(f"{index_name(shard.name)}: {counts}")
    if recount is not None and not checker.problems:
        checker.check_archive()
    return checker.problems


class _NoIndexError(Exception):
    """The file is no index of ours."""


class _SampleChecker:
    """Reads an archive as its index says, and collects the problems."""

    def __init__(self, shard: ShardEntry, archive: BinaryIO) -> None:
        self.problems: list[str] = []
        self.keys: list[str] = []
        self._shard, self._archive = shard, archive
        self._rewritten = TarWriter(_NullFile())  # digest of the tar that the writer would make of these samples

    def intact_samples(self, index: pq.ParquetFile) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Row and image of each sample whose members are what the index says."""
        if not index.schema_arrow.remove_metadata().equals(INDEX_SCHEMA):
            raise _NoIndexError("has other columns than an index")
        for batch in index.iter_batches(batch_size=_BATCH_ROWS):
            if any(column.null_count for column in batch.columns):
                raise _NoIndexError("has rows without a value")
            for row in batch.to_pylist():
                self.keys.append(row["key"])
                image = self._read_image(row)
                if image is not None:
                    yield row, image

    def check_images(self, samples: Iterator[tuple[dict[str, Any], bytes]], recount: _Recount) -> None:
        """Decode every image, compare it with its row, and count it."""
        for row, _, outcome in shared_sandbox(CheckOptions(statistics=True)).check(samples):
            if isinstance(outcome, ImageRejectedError):
                self._add_problem(row, outcome.reason)
            else:
                self._check_facts(row, outcome)
                recount.statistics.add(row["labels"], outcome)

    def check_archive(self) -> None:
        """The archive holds nothing beside the samples, and stock webdataset reads the same ones."""
        if self._rewritten.close() != self._shard.sha256:
            self.problems.append(f"{self._shard.name}: holds something that its index does not name")
        try:
            keys = keys_by_webdataset(self._archive)
        except (tarfile.TarError, ValueError):
            keys = []
        if keys != self.keys:
            self.problems.append(f"{self._shard.name}: webdataset reads other samples than its index names")

    def _read_image(self, row: dict[str, Any]) -> bytes | None:
        """The bytes of a sample's image, or None when something is wrong with the sample."""
        if key_of(row["origin"]) != row["key"]:
            self._add_index_problem(row, "its key is not the one of its origin")
            return None
        extension, label = label_member(row["labels"])
        label_name, image_name = f"{row['key']}.{extension}", f"{row['key']}.{row['format']}"
        image = self._read_member(image_name, row["image_offset"], row["image_bytes"])
        if image is None:
            self._add_problem(row, "its tar header is damaged")
        elif sha256_hex(image) != row["sha256"]:
            self._add_problem(row, "its bytes are damaged")
        elif self._read_member(label_name, row["label_offset"], row["label_bytes"]) != label:
            self._add_problem(row, "its label is not the one of the index")
        else:
            self._rewritten.add(label_name, label)
            self._rewritten.add(image_name, image)
            return image
        return None

    def _read_member(self, name: str, offset: int, num_bytes: int) -> bytes | None:
        """The bytes of a member, or None when its header is not what it has to be."""
        if offset < _HEADER_BYTES or num_bytes < 0 or offset + num_bytes > self._shard.num_bytes:
            return None
        self._archive.seek(offset - _HEADER_BYTES)
        try:
            expected = member_header(name, num_bytes)
        except ValueError:  # no name or size that a header can hold
            return None
        return self._archive.read(num_bytes) if self._archive.read(_HEADER_BYTES) == expected else None

    def _check_facts(self, row: dict[str, Any], checked: CheckResult) -> None:
        facts = checked.facts
        decoded, stated = (facts.width, facts.height, facts.format), (row["width"], row["height"], row["format"])
        if decoded != stated:
            image, index = ("{} x {} {}".format(*triple) for triple in (decoded, stated))
            self._add_index_problem(row, f"the image is {image}, the index says {index}")

    def _add_problem(self, row: dict[str, Any], problem: str) -> None:
        self.problems.append(f"{self._shard.name}: sample {row['key']} at byte {row['image_offset']}: {problem}")

    def _add_index_problem(self, row: dict[str, Any], problem: str) -> None:
        self.problems.append(f"{index_name(self._shard.name)}: sample {row['key']}: {problem}")


class _NullFile(io.BytesIO):
    """A file that drops what is written."""

    def write(self, data: Any) -> int:
        return len(data)


def keys_by_webdataset(archive: BinaryIO) -> list[str]:
    """The keys of the samples that webdataset itself groups out of the archive, in its order.

    Raises tarfile.TarError or ValueError when it cannot be read as samples.
    """
    import webdataset  # noqa: PLC0415 - brings torch along, which everything else here does without

    archive.seek(0)
    with tarfile.open(fileobj=archive) as members:
        return [sample["__key__"] for sample in webdataset.tariterators.group_by_keys(_file_samples(members))]


def _file_samples(members: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    """The files of a tar as webdataset's own reader yields them, without their bytes."""
    for member in members:
        members.members = []  # type: ignore[attr-defined]  # tarfile retains every member otherwise
        if member.isfile():
            yield {"fname": member.name, "data": b"", "__url__": ""}
