"""Is what the card says what is stored? Names what is damaged.

Three depths: ``fast`` looks at cards, tables and sizes; ``bytes`` (the default) digests every file as well;
``full`` also reads every sample through its index, decodes it, and has stock webdataset read the same keys.
"""

from __future__ import annotations

import io
import tarfile
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import sha256_hex
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.images.decode import ImageRejectedError, decode
from pipeline.records.dataset import CARD, REJECTS_TABLE, SHARDS_TABLE, DatasetCard, ShardEntry, dataset_digest
from pipeline.records.record import read_record
from pipeline.shard.tar import member_header
from pipeline.shard.write import index_name

Depth = Literal["fast", "bytes", "full"]


def verify_dataset(target: Store, depth: Depth, progress: Progress) -> list[str]:
    """Every problem found, one line each, with the name of the file; empty when all is well.

    Raises FileNotFoundError when there is no card, DamageError when the card itself is damaged.
    """
    card = read_record(DatasetCard, target, CARD)
    problems = _check_counts(card)
    tables = {
        name: _check_table(target, name, card.tables.get(name), problems) for name in (SHARDS_TABLE, REJECTS_TABLE)
    }
    shards = _shards(tables.get(SHARDS_TABLE))
    rejects = tables.get(REJECTS_TABLE)
    if rejects is not None and rejects.num_rows != card.num_rejected:
        problems.append(f"{REJECTS_TABLE}: {rejects.num_rows} rows, the card says {card.num_rejected}")
    if shards is not None:
        problems += _check_sums(card, shards)
        progress.start(f"verify {card.name}", len(shards))
        for shard in shards:
            problems += _check_shard(target, shard, depth)
            progress.advance()
        progress.finish()
    return problems


def _check_counts(card: DatasetCard) -> list[str]:
    if card.num_input == card.num_samples + card.num_rejected + card.num_duplicates:
        return []
    return [
        f"{CARD}: input {card.num_input} is not written {card.num_samples} + rejected {card.num_rejected}"
        f" + duplicates {card.num_duplicates}"
    ]


def _check_table(target: Store, name: str, digest: str | None, problems: list[str]) -> pa.Table | None:
    try:
        data = target.read(name)
    except FileNotFoundError:
        problems.append(f"{name}: missing")
        return None
    if sha256_hex(data) != digest:
        problems.append(f"{name}: its bytes are not those that the card names")
        return None
    return pq.read_table(io.BytesIO(data))


def _shards(table: pa.Table | None) -> list[ShardEntry] | None:
    return None if table is None else [ShardEntry.model_validate(row) for row in table.to_pylist()]


def _check_sums(card: DatasetCard, shards: list[ShardEntry]) -> list[str]:
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


def _check_shard(target: Store, shard: ShardEntry, depth: Depth) -> list[str]:
    info = target.head(shard.name)
    if info is None:
        return [f"{shard.name}: missing"]
    if info.num_bytes != shard.num_bytes:
        return [f"{shard.name}: {info.num_bytes} bytes, the card says {shard.num_bytes}"]
    if target.head(index_name(shard.name)) is None:
        return [f"{index_name(shard.name)}: missing"]
    if depth == "fast":
        return []
    problems = []
    archive, index = target.read(shard.name), target.read(index_name(shard.name))
    if sha256_hex(archive) != shard.sha256:
        problems.append(f"{shard.name}: damaged, its sha256 is not the one in {SHARDS_TABLE}")
    if sha256_hex(index) != shard.index_sha256:
        problems.append(f"{index_name(shard.name)}: damaged, its sha256 is not the one in {SHARDS_TABLE}")
    elif depth == "full" or problems:
        problems += _check_samples(shard, archive, pq.read_table(io.BytesIO(index)))
    return problems


def _check_samples(shard: ShardEntry, archive: bytes, index: pa.Table) -> list[str]:
    problems = []
    rows = index.to_pylist()
    for row in rows:
        start, size = row["image_offset"], row["image_bytes"]
        data = archive[start : start + size]
        where = f"{shard.name}: sample {row['key']} at byte {start}"
        if archive[start - 512 : start] != member_header(f"{row['key']}.{row['format']}", size):
            problems.append(f"{where}: its tar header is damaged")
        elif sha256_hex(data) != row["sha256"]:
            problems.append(f"{where}: its bytes are damaged")
        else:
            try:
                decode(data)
            except ImageRejectedError as error:
                problems.append(f"{where}: {error.reason}")
    if not problems:
        # Imported here: webdataset brings torch along, which the other depths do without.
        from pipeline.shard.interchange import keys_by_webdataset  # noqa: PLC0415

        try:
            keys = keys_by_webdataset(archive)
        except (tarfile.TarError, ValueError):
            keys = []
        if keys != [row["key"] for row in rows]:
            problems.append(f"{shard.name}: webdataset reads other samples than its index names")
    return problems
