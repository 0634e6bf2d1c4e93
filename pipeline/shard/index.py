"""The index beside a shard: one row per sample, and in its footer the shard's entry, rejects and statistics.

Statistics are sums of integers alone, so sums over shards are exact, in whatever order they are added.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import sha256_hex
from pipeline.base.store.object_file import open_object
from pipeline.base.store.protocol import Store
from pipeline.images.check import CheckResult
from pipeline.records.corpus import Reject
from pipeline.records.dataset import INDEX_SCHEMA, DatasetStatistics, ShardEntry

_FIXED = 1 << 32  # an image's channel mean is stored as a multiple of 2^-32
_ASPECTS = (0.0, 0.25, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 4.0)  # lower ends of the bins of width / height
_ENTRY, _REJECTS, _STATISTICS = b"vitpipe.entry", b"vitpipe.rejects", b"vitpipe.statistics"  # keys of the footer
_ROW_GROUP = 8_192  # rows of a row group of the index
_UNREADABLE = (pa.ArrowException, OSError, LookupError, TypeError, ValueError)  # what a file of others raises


@dataclass
class ShardStatistics:
    """Sums over the samples of a shard, or of many."""

    num_samples: int = 0
    num_multi_label: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    short_sides: Counter[str] = field(default_factory=Counter)
    aspects: Counter[str] = field(default_factory=Counter)
    sides: list[int] = field(default_factory=lambda: [2**31, 0, 0, 2**31, 0, 0])  # width: min, max, sum; height: same
    num_decoded: int = 0
    channels: list[int] = field(default_factory=lambda: [0] * 6)  # means of R, G, B; then means of squares

    def add(self, labels: list[int], checked: CheckResult) -> None:
        """Count one sample."""
        facts = checked.facts
        self.num_samples += 1
        self.num_multi_label += len(labels) > 1
        self.labels.update(str(label) for label in labels)
        self.formats[facts.format] += 1
        self.short_sides[str(1 << (min(facts.width, facts.height).bit_length() - 1))] += 1
        self.aspects[_aspect_bin(facts.width / facts.height)] += 1
        for at, side in ((0, facts.width), (3, facts.height)):
            self.sides[at : at + 3] = [
                min(self.sides[at], side),
                max(self.sides[at + 1], side),
                self.sides[at + 2] + side,
            ]
        if checked.sums is not None and checked.squares is not None:
            self.num_decoded += 1
            for at, total in enumerate((*checked.sums, *checked.squares)):
                self.channels[at] += total * _FIXED // checked.num_pixels

    def merge(self, added: ShardStatistics) -> None:
        """Add the sums of *added*."""
        self.num_samples += added.num_samples
        self.num_multi_label += added.num_multi_label
        self.num_decoded += added.num_decoded
        for name in ("labels", "formats", "short_sides", "aspects"):
            getattr(self, name).update(getattr(added, name))
        for at in (0, 3):
            left, right = self.sides[at : at + 3], added.sides[at : at + 3]
            self.sides[at : at + 3] = [min(left[0], right[0]), max(left[1], right[1]), left[2] + right[2]]
        self.channels = [a + b for a, b in zip(self.channels, added.channels, strict=True)]

    def to_json(self) -> str:
        """As text; equal statistics have equal text."""
        return json.dumps(self.__dict__, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ShardStatistics:
        """The inverse of :meth:`to_json`."""
        tree: dict[str, Any] = json.loads(text)
        counters = {name: Counter(value) for name, value in tree.items() if isinstance(value, dict)}
        return cls(**(tree | counters))

    def summary(self, num_classes: int) -> DatasetStatistics:
        """As the card shows it."""
        width_min, width_max, width_sum, height_min, height_max, height_sum = self.sides
        return DatasetStatistics(
            label_counts=tuple(self.labels[str(index)] for index in range(num_classes)),
            num_multi_label=self.num_multi_label,
            formats=dict(sorted(self.formats.items())),
            width_min=width_min,
            width_max=width_max,
            width_mean=width_sum / self.num_samples,
            height_min=height_min,
            height_max=height_max,
            height_mean=height_sum / self.num_samples,
            short_sides=dict(sorted(self.short_sides.items(), key=lambda pair: int(pair[0]))),
            aspects=dict(sorted(self.aspects.items(), key=lambda pair: float(pair[0]))),
            channel_mean=self._per_channel(lambda mean, _: mean),
            channel_std=self._per_channel(lambda mean, square: math.sqrt(max(0.0, square - mean * mean))),
        )

    def _per_channel(self, measure: Callable[[float, float], float]) -> tuple[float, float, float] | None:
        """*measure* of each channel's mean and mean square; None unless every sample was decoded."""
        if self.num_decoded < self.num_samples or not self.num_samples:
            return None
        values = [total / (_FIXED * self.num_samples) for total in self.channels]
        return measure(values[0], values[3]), measure(values[1], values[4]), measure(values[2], values[5])


def _aspect_bin(aspect: float) -> str:
    return f"{max(edge for edge in _ASPECTS if edge <= aspect):g}"


def index_name(shard: str) -> str:
    """The file name of the index of *shard*."""
    return shard.removesuffix(".tar") + ".parquet"


def label_member(labels: list[int]) -> tuple[str, bytes]:
    """Extension and bytes: one label is KEY.cls, as webdataset's decoders expect; none or several are KEY.json."""
    if len(labels) == 1:
        return "cls", str(labels[0]).encode()
    return "json", json.dumps({"labels": labels}).encode()


@dataclass(frozen=True)
class IndexFooter:
    """What an index says of its shard. ``facts``: the fields of its ShardEntry, apart from the index's own digest."""

    facts: dict[str, Any]
    rejects: tuple[Reject, ...]
    statistics: ShardStatistics


def parse_footer(index: bytes) -> IndexFooter | None:
    """The footer of the index file *index*; None when it is no index of ours."""
    try:
        footer = _metadata(index)
        facts, rejects = json.loads(footer[_ENTRY]), tuple(Reject(**row) for row in json.loads(footer[_REJECTS]))
        return IndexFooter(facts, rejects, ShardStatistics.from_json(footer[_STATISTICS].decode()))
    except _UNREADABLE:
        return None


def read_entry(target: Store, shard: str) -> ShardEntry | None:
    """The entry of *shard* that its index gives; None when that cannot be read, or is of no sample."""
    try:
        index = target.read(index_name(shard))
        facts = json.loads(_metadata(index)[_ENTRY])
    except _UNREADABLE:
        return None
    return ShardEntry(**facts, index_sha256=sha256_hex(index)) if facts["num_samples"] else None


def read_statistics(target: Store, shard: str) -> ShardStatistics:
    """The statistics in the index of *shard*; of the file only its footer is read."""
    with open_object(target, index_name(shard)) as file:
        return ShardStatistics.from_json(pq.ParquetFile(file).metadata.metadata[_STATISTICS].decode())


def _metadata(index: bytes) -> dict[bytes, bytes]:
    metadata: dict[bytes, bytes] = pq.ParquetFile(pa.BufferReader(index)).metadata.metadata
    return metadata


class IndexWriter:
    """Writes the index file at *path* row by row; the footer when it is closed."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(str(path), INDEX_SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Append a row of INDEX_SCHEMA."""
        self._rows.append(row)
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def close(self, footer: IndexFooter) -> None:
        """Write the last rows and *footer*."""
        self._flush()
        self._writer.add_key_value_metadata(
            {
                _ENTRY.decode(): json.dumps(footer.facts),
                _REJECTS.decode(): json.dumps([asdict(reject) for reject in footer.rejects]),
                _STATISTICS.decode(): footer.statistics.to_json(),
            }
        )
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=INDEX_SCHEMA))
            self._rows = []
