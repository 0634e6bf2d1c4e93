"""The images of a dataset of the workspace that must not be trained on, with their digests."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError
from pipeline.base.rows import Rows, RowsWriter
from pipeline.base.store.protocol import Store
from pipeline.base.tables import read_parquet
from pipeline.corpus.equal import IMAGE_SCHEMA
from pipeline.corpus.ranges import RangeReader
from pipeline.corpus.scan import Scanner
from pipeline.records.corpus import LISTING_SCHEMA, Corpus
from pipeline.records.dataset import SHARDS_TABLE, DatasetCard, ShardEntry, dataset_prefix, read_dataset_card

_INDEXED_SCHEMA = pa.schema([*LISTING_SCHEMA, pa.field("sha256", pa.binary(32))])


def evaluation_images(workspace: Store, name: str, scanner: Scanner, *, pixels: bool) -> Iterator[pa.Table]:
    """The images of dataset *name* as rows of equal.IMAGE_SCHEMA; with *pixels* they are decoded for that.

    Raises InputError when there is no such dataset, DamageError when it is not what its card says.
    """
    card = read_dataset_card(workspace, name)
    indexed = RowsWriter(_INDEXED_SCHEMA)
    for shard in _shards(workspace, card):
        indexed.add(_entries(workspace, name, shard))
    rows = indexed.close()
    if not pixels:
        for table in rows.chunks():
            yield _images(table["origin"], table["sha256"], pa.nulls(table.num_rows, pa.binary(32)))
        return
    yield from _decoded(workspace, card, rows, scanner)


def _decoded(workspace: Store, card: DatasetCard, rows: Rows, scanner: Scanner) -> Iterator[pa.Table]:
    entries = RowsWriter(LISTING_SCHEMA)
    for table in rows.chunks():
        entries.add(table.select(LISTING_SCHEMA.names))
    corpus = Corpus(entries.close(), (), RangeReader(workspace), made_of={"dataset": card.digest})
    scanned = scanner.scan(corpus, "pixels", name=f"against-{card.name}")
    _compare(card.name, rows, scanned)
    num_undecodable = 0
    for table in scanned.chunks():
        whole = table.filter(pc.equal(table["reason"], ""))
        num_undecodable += table.num_rows - whole.num_rows
        yield _images(whole["origin"], whole["sha256"], whole["pixels"])
    if num_undecodable:
        scanner.progress.say(f"{num_undecodable} images of {card.name} cannot be decoded, so nothing equals them")


def _compare(name: str, indexed: Rows, scanned: Rows) -> None:
    """Raise DamageError unless each image is the one that was indexed: a damaged one would hide its copies."""
    theirs = (digest for table in indexed.chunks() for digest in table["sha256"].to_pylist())
    ours = (row for table in scanned.chunks() for row in table.select(["origin", "sha256"]).to_pylist())
    for row, digest in zip(ours, theirs, strict=True):
        if row["sha256"] != digest:
            raise _damage(name, f"image {row['origin'].rpartition('/')[2]}")


def _shards(workspace: Store, card: DatasetCard) -> Iterator[ShardEntry]:
    data = _checked(workspace, card.name, SHARDS_TABLE, card.tables.get(SHARDS_TABLE, ""))
    for row in read_parquet(data).to_pylist():
        yield ShardEntry(**row)


def _entries(workspace: Store, name: str, shard: ShardEntry) -> pa.Table:
    """Rows of _INDEXED_SCHEMA: the images of *shard* as ranges of its tar."""
    data = _checked(workspace, name, shard.name.removesuffix(".tar") + ".parquet", shard.index_sha256)
    columns = ["key", "image_offset", "image_bytes", "sha256"]
    index = read_parquet(data, columns)
    tar, count = f"{dataset_prefix(name)}/{shard.name}", index.num_rows
    info = workspace.head(tar)
    if info is None or info.num_bytes != shard.num_bytes:
        raise _damage(name, shard.name)
    table = {
        "origin": pc.binary_join_element_wise(name, index["key"], "/"),
        "file": pa.array([tar] * count, pa.string()),
        "row": pa.array([-1] * count, pa.int64()),
        "offset": index["image_offset"],
        "num_bytes": index["image_bytes"],
        "etag": pa.array([info.etag] * count, pa.string()),
        "source": pa.array([0] * count, pa.int16()),
        "labels": pa.nulls(count, pa.list_(pa.int32())),
        "sha256": pa.array([bytes.fromhex(text) for text in index["sha256"].to_pylist()], pa.binary(32)),
    }
    return pa.table(table, schema=_INDEXED_SCHEMA)


def _checked(workspace: Store, name: str, file: str, sha256: str) -> bytes:
    try:
        data = workspace.read(f"{dataset_prefix(name)}/{file}")
    except FileNotFoundError:
        raise _damage(name, file) from None
    if sha256_hex(data) != sha256:
        raise _damage(name, file)
    return data


def _damage(name: str, what: str) -> DamageError:
    return DamageError(f"dataset {name}: {what} is not what its card says", f"see: vitpipe verify {name} --full")


def _images(origins: pa.ChunkedArray, sha256: pa.ChunkedArray, pixels: pa.Array | pa.ChunkedArray) -> pa.Table:
    count = len(origins)
    columns = {
        "position": pa.array([-1] * count, pa.int64()),
        "origin": origins,
        "labels": pa.nulls(count, pa.list_(pa.int32())),
        "sha256": sha256,
        "pixels": pixels,
    }
    return pa.table(columns, schema=IMAGE_SCHEMA)
