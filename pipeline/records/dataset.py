"""Dataset card, shard entries, the schema of a shard's index, the header of a tar member; and keys.

A dataset exists if and only if its card, ``datasets/<name>/dataset.json``, is there. The card is written last.
"""

from __future__ import annotations

import tarfile
from typing import Any, Literal

import pyarrow as pa

from pipeline.base.digests import fingerprint
from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.records.corpus import ClassEntry
from pipeline.records.record import Record, read_record

CARD = "dataset.json"
SHARDS_TABLE = "shards.parquet"
REJECTS_TABLE = "rejects.parquet"
DUPLICATES_TABLE = "duplicates.parquet"
WORK = "work"  # below a dataset: what a sharding needs until its card is written
HEADER_BYTES = 512  # of a member of a tar, before its data
_NAME_BYTES = 100  # of a member, in a USTAR header without a prefix
_MAX_MEMBER_BYTES = 8**11 - 1  # eleven octal digits
# One row per sample of a shard, in the order of the tar. Offsets are of the members' data, in bytes from the start.
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
        ("label_offset", pa.int64()),
        ("label_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("origin", pa.string()),
    ]
)


class ShardEntry(Record):
    """One shard as the card's table names it. ``sha256`` is of the tar, ``index_sha256`` of its index file."""

    name: str
    num_bytes: int
    sha256: str
    num_samples: int
    index_sha256: str


SHARDS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("num_samples", pa.int64()),
        ("index_sha256", pa.string()),
    ]
)


class DatasetStatistics(Record):
    """Counts over the written samples. ``label_counts`` has one entry per class; ``num_multi_label`` counts samples
    that have more than one label.

    ``short_sides`` counts samples by the power of two at or below their short side, in pixels; ``aspects`` by width /
    height (keys are the lower ends of the bins). ``channel_mean`` and ``channel_std`` are of R, G, B in [0, 255], each
    image weighing the same, over 32 rows or more of each; None when pixels were not decoded (check: header).
    """

    label_counts: tuple[int, ...]
    num_multi_label: int
    formats: dict[str, int]
    width_min: int
    width_max: int
    width_mean: float
    height_min: int
    height_max: int
    height_mean: float
    short_sides: dict[str, int]
    aspects: dict[str, int]
    channel_mean: tuple[float, float, float] | None
    channel_std: tuple[float, float, float] | None


class DatasetCard(Record):
    """What a dataset is. Holds no time, host, absolute URI or attempt: same input and recipe, same bytes.

    ``made_of`` is what shaped the corpus before it was sharded: sources and weights, duplicates, split.
    ``class_table`` is there only where a class table has synsets or parents.
    """

    schema_version: Literal[2] = 2
    name: str
    class_names: tuple[str, ...]
    class_table: tuple[ClassEntry, ...] = ()
    num_input: int
    num_samples: int
    num_rejected: int
    num_duplicates: int
    num_bytes: int
    num_shards: int
    statistics: DatasetStatistics
    made_of: dict[str, Any]
    recipe: dict[str, Any]
    listing_digest: str
    fingerprint: str
    tables: dict[str, str]
    digest: str


def dataset_digest(shard_digests: list[str]) -> str:
    """The digest of a dataset: over the digests of its shards, in their order."""
    return fingerprint(shard_digests)


def dataset_prefix(name: str) -> str:
    """The prefix of the keys of dataset *name*."""
    return f"datasets/{name}"


def list_datasets(workspace: Store) -> list[str]:
    """The names of all datasets that have a card."""
    keys = (info.key for info in workspace.list("datasets/"))
    return sorted(key.split("/")[1] for key in keys if key.endswith(f"/{CARD}") and key.count("/") == 2)


def read_dataset_card(workspace: Store, name: str) -> DatasetCard:
    """The card of dataset *name*. Raises InputError when there is no such dataset."""
    try:
        return read_record(DatasetCard, workspace, f"{dataset_prefix(name)}/{CARD}")
    except FileNotFoundError:
        raise InputError(
            f"no dataset {name!r} in {workspace.uri}", "shard one with: vitpipe shard SOURCE --workspace ... --name ..."
        ) from None


def member_header(name: str, num_bytes: int) -> bytes:
    """The 512 bytes before a member's data: a USTAR header with fixed owner, mode and time.

    *name* is ASCII and at most 100 characters, as keys with an extension are.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _NAME_BYTES or num_bytes > _MAX_MEMBER_BYTES:
        raise ValueError(f"{name!r} of {num_bytes} bytes does not fit a USTAR header")
    size = b"%011o" % num_bytes
    checksum = b"%06o\0 " % (_TEMPLATE_SUM + sum(encoded) + sum(size))
    return b"".join((encoded, _BEFORE_SIZE[len(encoded) :], size, _AFTER_SIZE, checksum, _AFTER_CHECKSUM))


def _template() -> bytes:
    """The header of an empty name, with zeroes for size and checksum."""
    member = tarfile.TarInfo("x")
    member.mtime, member.mode = 0, 0o444
    header = bytearray(member.tobuf(format=tarfile.USTAR_FORMAT))
    header[0] = 0
    header[124:135] = bytes(11)
    header[148:156] = bytes(8)
    return bytes(header)


_TEMPLATE = _template()  # filling it in takes 1 us, tarfile's own way 14
_TEMPLATE_SUM = sum(_TEMPLATE) + 8 * ord(" ")  # the sum counts its own field as blanks
_BEFORE_SIZE, _AFTER_SIZE, _AFTER_CHECKSUM = _TEMPLATE[:124], _TEMPLATE[135:148], _TEMPLATE[156:]
