"""Every sample of a shard, read through its index: header, digest, label, pixels; and counted again."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import differing_fields, sha256_hex
from pipeline.images.check import Checked, CheckOptions
from pipeline.images.decode import ImageRejectedError
from pipeline.images.sandbox import shared_sandbox
from pipeline.records.corpus import key_of
from pipeline.records.dataset import CARD, INDEX_SCHEMA, SHARDS_TABLE, DatasetCard, ShardEntry
from pipeline.records.tar_header import member_header
from pipeline.shard.interchange import keys_by_webdataset
from pipeline.shard.statistics import ShardStatistics
from pipeline.shard.tar import ShardTar
from pipeline.shard.write import index_name, label_member

_HEADER_BYTES = 512
_BATCH_ROWS = 1_024
_SHOWN = 3  # differences of a card that are told


@dataclass
class Recount:
    """What the samples themselves add up to."""

    statistics: ShardStatistics = field(default_factory=ShardStatistics)

    def differences(self, card: DatasetCard) -> list[str]:
        """Where the card says something else, as ``field: the card's -> ours``; the first few fields."""
        if not self.statistics.num_samples:
            return [f"{CARD}: counted no samples, the card says {card.num_samples}"]
        num_classes = len(card.class_names)
        outside = sum(count for label, count in self.statistics.labels.items() if int(label) >= num_classes)
        if outside:
            return [f"{CARD}: {outside} labels are beyond its {num_classes} classes"]
        ours: dict[str, Any] = self.statistics.summary(num_classes).model_dump(mode="json")
        its: dict[str, Any] = card.statistics.model_dump(mode="json")
        if not _shows_originals(card):
            for name in ("channel_mean", "channel_std"):
                del ours[name], its[name]
        for counts in (ours, its):
            counts["label_counts"] = dict(zip(card.class_names, counts["label_counts"], strict=True))
        return [f"{CARD}: counted again: {told}" for told in differing_fields(ours, its)[:_SHOWN]]


def _shows_originals(card: DatasetCard) -> bool:
    """Whether the pixels that the card's colours are of are those that are stored."""
    resize = card.recipe.get("resize")
    return card.recipe.get("check") == "full" and isinstance(resize, dict) and resize.get("mode") == "keep"


def check_samples(shard: ShardEntry, archive: BinaryIO, index: bytes, recount: Recount | None) -> list[str]:
    """The problems of the samples of *shard*, whose bytes are *archive* and whose index file is *index*.

    Without *recount* this only says which samples are damaged, and decodes nothing.
    """
    walk = _Walk(shard, archive)
    try:
        whole = walk.samples(pq.ParquetFile(pa.BufferReader(index)))
        if recount is None:
            for _ in whole:
                pass
        else:
            walk.check_images(whole, recount)
    except _NoIndexError as error:
        return [f"{index_name(shard.name)}: {error}"]
    except (pa.ArrowException, OSError):
        return [f"{index_name(shard.name)}: cannot be read as parquet"]
    if len(walk.keys) != shard.num_samples:
        told = f"{len(walk.keys)} samples, {SHARDS_TABLE} says {shard.num_samples}"
        walk.problems.append(f"{index_name(shard.name)}: {told}")
    if recount is not None and not walk.problems:
        walk.check_as_others_read_it()
    return walk.problems


class _NoIndexError(Exception):
    """The file is no index of ours."""


class _Walk:
    """Goes through an archive as its index says, and writes down what is not so."""

    def __init__(self, shard: ShardEntry, archive: BinaryIO) -> None:
        self.problems: list[str] = []
        self.keys: list[str] = []
        self._shard, self._archive = shard, archive
        self._again = ShardTar(_Nowhere())  # what the writer would make of these samples

    def samples(self, index: pq.ParquetFile) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Row and image of each sample whose members are what the index says."""
        if not index.schema_arrow.remove_metadata().equals(INDEX_SCHEMA):
            raise _NoIndexError("has other columns than an index")
        for batch in index.iter_batches(batch_size=_BATCH_ROWS):
            if any(column.null_count for column in batch.columns):
                raise _NoIndexError("has rows without a value")
            for row in batch.to_pylist():
                self.keys.append(row["key"])
                image = self._image(row)
                if image is not None:
                    yield row, image

    def check_images(self, whole: Iterator[tuple[dict[str, Any], bytes]], recount: Recount) -> None:
        """Decode every image, and count it."""
        for row, _, outcome in shared_sandbox(CheckOptions(statistics=True)).check(whole):
            if isinstance(outcome, ImageRejectedError):
                self._tell(row, outcome.reason)
            else:
                self._check_facts(row, outcome)
                recount.statistics.add(row["labels"], outcome)

    def check_as_others_read_it(self) -> None:
        """Nothing stands in the archive beside the samples, and stock webdataset finds the same ones."""
        if self._again.close() != self._shard.sha256:
            self.problems.append(f"{self._shard.name}: holds something that its index does not name")
        try:
            found = keys_by_webdataset(self._archive)
        except (tarfile.TarError, ValueError):
            found = []
        if found != self.keys:
            self.problems.append(f"{self._shard.name}: webdataset reads other samples than its index names")

    def _image(self, row: dict[str, Any]) -> bytes | None:
        """The bytes of a sample's image, or None when something is wrong with the sample."""
        if key_of(row["origin"]) != row["key"]:
            self._tell_of_index(row, "its key is not the one of its origin")
            return None
        extension, label = label_member(row["labels"])
        label_name, image_name = f"{row['key']}.{extension}", f"{row['key']}.{row['format']}"
        image = self._member(image_name, row["image_offset"], row["image_bytes"])
        if image is None:
            self._tell(row, "its tar header is damaged")
        elif sha256_hex(image) != row["sha256"]:
            self._tell(row, "its bytes are damaged")
        elif self._member(label_name, row["label_offset"], row["label_bytes"]) != label:
            self._tell(row, "its label is not the one of the index")
        else:
            self._again.add(label_name, label)
            self._again.add(image_name, image)
            return image
        return None

    def _member(self, name: str, offset: int, num_bytes: int) -> bytes | None:
        """The bytes of a member, or None when its header is not what it has to be."""
        if offset < _HEADER_BYTES or num_bytes < 0 or offset + num_bytes > self._shard.num_bytes:
            return None
        self._archive.seek(offset - _HEADER_BYTES)
        try:
            expected = member_header(name, num_bytes)
        except ValueError:  # no name or size that a header can hold
            return None
        return self._archive.read(num_bytes) if self._archive.read(_HEADER_BYTES) == expected else None

    def _check_facts(self, row: dict[str, Any], checked: Checked) -> None:
        facts = checked.facts
        found, told = (facts.width, facts.height, facts.format), (row["width"], row["height"], row["format"])
        if found != told:
            its, says = ("{} x {} {}".format(*what) for what in (found, told))
            self._tell_of_index(row, f"the image is {its}, the index says {says}")

    def _tell(self, row: dict[str, Any], what: str) -> None:
        self.problems.append(f"{self._shard.name}: sample {row['key']} at byte {row['image_offset']}: {what}")

    def _tell_of_index(self, row: dict[str, Any], what: str) -> None:
        self.problems.append(f"{index_name(self._shard.name)}: sample {row['key']}: {what}")


class _Nowhere(io.BytesIO):
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)
