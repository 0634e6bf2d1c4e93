"""Write one shard: read each entry, check it by decoding it, append it to the tar, and index it.

The index file carries the shard's entry, its rejects and the digest of its plan. It is put after the tar, so a shard
whose index is there and names the same plan is done, and a rerun skips it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import fingerprint, sha256_hex
from pipeline.base.store import Store
from pipeline.images.decode import ImageFacts, ImageRejectedError, decode
from pipeline.records.corpus import CorpusReader, Reject, key_of
from pipeline.records.dataset import INDEX_SCHEMA, ShardEntry
from pipeline.shard.plan import PlannedShard, table_bytes
from pipeline.shard.tar import ShardTar

_PLAN, _ENTRY, _REJECTS = b"vitpipe.plan", b"vitpipe.entry", b"vitpipe.rejects"


@dataclass(frozen=True)
class WrittenShard:
    """What became of one planned shard; ``entry`` is None when every image of it was rejected."""

    number: int
    entry: ShardEntry | None
    rejects: tuple[Reject, ...]


def plan_digest(shard: PlannedShard, format_fingerprint: str) -> str:
    """What the shard's bytes depend on, apart from the images themselves."""
    return fingerprint([format_fingerprint, sha256_hex(table_bytes(shard.entries))])


def write_shard(shard: PlannedShard, reader: CorpusReader, target: Store, plan: str) -> WrittenShard:
    """Write *shard* and its index into *target*. *plan* is its plan digest."""
    tar = ShardTar()
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for entry, data in _read(shard, reader, rejects):
        try:
            _, facts = decode(data)
        except ImageRejectedError as error:
            rejects.append(Reject(entry["origin"], error.reason, error.detail))
            continue
        rows.append(_add(tar, entry, data, facts))
    archive = tar.close()
    if rows:
        target.put(shard.name, archive)
    facts_of_shard = {"name": shard.name, "num_bytes": len(archive), "sha256": sha256_hex(archive)}
    facts_of_shard["num_samples"] = len(rows)
    index = _index_bytes(rows, rejects, facts_of_shard, plan)
    target.put(index_name(shard.name), index)
    return _written(shard.number, facts_of_shard, tuple(rejects), sha256_hex(index))


def find_written(shard: PlannedShard, target: Store, plan: str) -> WrittenShard | None:
    """The shard as an earlier attempt left it, or None when it has to be written."""
    try:
        index = target.read(index_name(shard.name))
    except FileNotFoundError:
        return None
    try:
        metadata = pq.read_schema(io.BytesIO(index)).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None
    if metadata.get(_PLAN) != plan.encode():
        return None
    facts = json.loads(metadata[_ENTRY])
    info = target.head(shard.name)
    if facts["num_samples"] and (info is None or info.num_bytes != facts["num_bytes"]):
        return None
    rejects = tuple(Reject(**item) for item in json.loads(metadata[_REJECTS]))
    return _written(shard.number, facts, rejects, sha256_hex(index))


def index_name(shard_name: str) -> str:
    """The index that stands beside a shard."""
    return shard_name.removesuffix(".tar") + ".parquet"


def _written(number: int, facts: dict[str, Any], rejects: tuple[Reject, ...], index_sha256: str) -> WrittenShard:
    entry = ShardEntry(**facts, index_sha256=index_sha256) if facts["num_samples"] else None
    return WrittenShard(number, entry, rejects)


def _read(shard: PlannedShard, reader: CorpusReader, rejects: list[Reject]) -> Iterator[tuple[dict[str, Any], bytes]]:
    images = reader.read(shard.entries)
    for entry in shard.entries.to_pylist():
        try:
            data = next(images)
        except OSError as error:
            rejects.append(Reject(entry["origin"], "unreadable", type(error).__name__))
            continue
        if data is None:
            rejects.append(Reject(entry["origin"], "null-image"))
        else:
            yield entry, data


def _add(tar: ShardTar, entry: dict[str, Any], data: bytes, facts: ImageFacts) -> dict[str, Any]:
    key, labels = key_of(entry["origin"]), entry["labels"]
    label_name, label = _label_member(labels)
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


def _label_member(labels: list[int]) -> tuple[str, bytes]:
    """One label is KEY.cls, as webdataset's decoders expect; none or several are KEY.json."""
    if len(labels) == 1:
        return "cls", str(labels[0]).encode()
    return "json", json.dumps({"labels": labels}).encode()


def _index_bytes(rows: list[dict[str, Any]], rejects: list[Reject], facts: dict[str, Any], plan: str) -> bytes:
    metadata = {
        _PLAN: plan.encode(),
        _ENTRY: json.dumps(facts).encode(),
        _REJECTS: json.dumps([asdict(reject) for reject in rejects]).encode(),
    }
    return parquet_bytes(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).replace_schema_metadata(metadata))


def parquet_bytes(table: pa.Table) -> bytes:
    """*table* as a parquet file; equal tables give equal bytes with one release of pyarrow."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
