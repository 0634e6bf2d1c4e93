"""Which images are left out: duplicates within a corpus, and images of evaluation sets (decontamination).

exact_duplicates.py compares digests; this file gives it the images, and applies what comes of it to the corpus.

Invariants: input = entries + rejects + duplicates, and all three are in the order of the listing. An image that is
both rejected and a duplicate counts as rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.digests import sha256_hex
from pipeline.base.disk_table import DiskTable, DiskTableWriter, read_parquet
from pipeline.base.errors import DamageError
from pipeline.base.store.protocol import Store
from pipeline.corpus.exact_duplicates import IMAGE_SCHEMA, KEPT, OUTCOME_SCHEMA, find_exact_duplicates
from pipeline.corpus.recipe import DuplicatesRecipe
from pipeline.corpus.scan import Scanner
from pipeline.corpus.sources.readers import RangeReader
from pipeline.corpus.worker import ScanDepth
from pipeline.records.corpus import DUPLICATES_SCHEMA, LISTING_SCHEMA, REJECTS_SCHEMA, Corpus, Reject
from pipeline.records.dataset import SHARDS_TABLE, DatasetCard, ShardEntry, dataset_prefix, read_dataset_card

_INDEXED_SCHEMA = pa.schema([*LISTING_SCHEMA, pa.field("sha256", pa.binary(32))])


def needed_depth(recipe: DuplicatesRecipe) -> ScanDepth:
    """How deep a scan has to look for *recipe*."""
    if recipe.within == "pixels" or (recipe.against and recipe.against_by == "pixels"):
        return "pixels"
    return "file" if recipe.within == "file" or recipe.against else "bytes"


def remove_duplicates(
    corpus: Corpus, scanned: DiskTable, recipe: DuplicatesRecipe, workspace: Store, scanner: Scanner
) -> Corpus:
    """*corpus* with the entries of *scanned* that can be used and that *recipe* leaves in.

    *scanned* comes of a scan of *corpus* as deep as ``needed_depth``; its entries are what ``corpus.reader`` reads.
    Raises InputError and DamageError for an evaluation set that is missing or damaged.
    """
    depth = needed_depth(recipe)
    writer, undecodable = DiskTableWriter(OUTCOME_SCHEMA), dict[str, Reject]()
    if depth != "bytes":
        images = chain(_usable_images(scanned), _evaluation_images(recipe, workspace, scanner))
        for table in find_exact_duplicates(images, scanned.num_rows, recipe):
            writer.add(table)
    outcomes = writer.close()
    if depth == "file":
        undecodable = _undecodable(corpus, scanned, outcomes, scanner)
    return _apply(corpus, scanned, outcomes, undecodable)


def _usable_images(scanned: DiskTable) -> Iterator[pa.Table]:
    """The usable ones as rows of IMAGE_SCHEMA."""
    start = 0
    for table in scanned.chunks():
        positions = pa.array(np.arange(start, start + table.num_rows))
        start += table.num_rows
        images = table.append_column("position", positions).select(IMAGE_SCHEMA.names)
        yield images.filter(pc.equal(table["reason"], ""))


def _evaluation_images(recipe: DuplicatesRecipe, workspace: Store, scanner: Scanner) -> Iterator[pa.Table]:
    for name in recipe.against:
        yield from _evaluation_set_digests(workspace, name, scanner, pixels=recipe.against_by == "pixels")


def _evaluation_set_digests(workspace: Store, name: str, scanner: Scanner, *, pixels: bool) -> Iterator[pa.Table]:
    """The images of dataset *name* as rows of IMAGE_SCHEMA; with *pixels* they are decoded for their digests.

    Raises InputError when there is no such dataset, DamageError when it is not what its card says.
    """
    card = read_dataset_card(workspace, name)
    indexed = DiskTableWriter(_INDEXED_SCHEMA)
    for shard in _shards(workspace, card):
        indexed.add(_indexed_images(workspace, name, shard))
    rows = indexed.close()
    if not pixels:
        for table in rows.chunks():
            yield _evaluation_rows(table["origin"], table["sha256"], pa.nulls(table.num_rows, pa.binary(32)))
        return
    yield from _decoded(workspace, card, rows, scanner)


def _shards(workspace: Store, card: DatasetCard) -> Iterator[ShardEntry]:
    data = _read_checked(workspace, card.name, SHARDS_TABLE, card.tables.get(SHARDS_TABLE, ""))
    for row in read_parquet(data).to_pylist():
        yield ShardEntry(**row)


def _indexed_images(workspace: Store, name: str, shard: ShardEntry) -> pa.Table:
    """Rows of _INDEXED_SCHEMA: the images of *shard* as ranges of its tar."""
    data = _read_checked(workspace, name, shard.name.removesuffix(".tar") + ".parquet", shard.index_sha256)
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


def _read_checked(workspace: Store, name: str, file: str, sha256: str) -> bytes:
    try:
        data = workspace.read(f"{dataset_prefix(name)}/{file}")
    except FileNotFoundError:
        raise _damage(name, file) from None
    if sha256_hex(data) != sha256:
        raise _damage(name, file)
    return data


def _damage(name: str, subject: str) -> DamageError:
    return DamageError(f"dataset {name}: {subject} is not what its card says", f"see: vitpipe verify {name} --full")


def _decoded(workspace: Store, card: DatasetCard, rows: DiskTable, scanner: Scanner) -> Iterator[pa.Table]:
    entries = DiskTableWriter(LISTING_SCHEMA)
    for table in rows.chunks():
        entries.add(table.select(LISTING_SCHEMA.names))
    corpus = Corpus(entries.close(), (), RangeReader(workspace), made_of={"dataset": card.digest})
    scanned = scanner.scan(corpus, "pixels", name=f"against-{card.name}")
    _check_digests(card.name, rows, scanned)
    num_undecodable = 0
    for table in scanned.chunks():
        usable = table.filter(pc.equal(table["reason"], ""))
        num_undecodable += table.num_rows - usable.num_rows
        yield _evaluation_rows(usable["origin"], usable["sha256"], usable["pixels"])
    if num_undecodable:
        scanner.progress.message(f"{num_undecodable} images of {card.name} cannot be decoded, so nothing equals them")


def _check_digests(name: str, indexed: DiskTable, scanned: DiskTable) -> None:
    """Raise DamageError unless each image is the one that was indexed: a damaged one would hide its copies."""
    expected = (digest for table in indexed.chunks() for digest in table["sha256"].to_pylist())
    rows = (row for table in scanned.chunks() for row in table.select(["origin", "sha256"]).to_pylist())
    for row, digest in zip(rows, expected, strict=True):
        if row["sha256"] != digest:
            raise _damage(name, f"image {row['origin'].rpartition('/')[2]}")


def _evaluation_rows(origins: pa.ChunkedArray, sha256: pa.ChunkedArray, pixels: pa.Array | pa.ChunkedArray) -> pa.Table:
    count = len(origins)
    columns = {
        "position": pa.array([-1] * count, pa.int64()),
        "origin": origins,
        "labels": pa.nulls(count, pa.list_(pa.int32())),
        "sha256": sha256,
        "pixels": pixels,
    }
    return pa.table(columns, schema=IMAGE_SCHEMA)


def _undecodable(corpus: Corpus, scanned: DiskTable, outcomes: DiskTable, scanner: Scanner) -> dict[str, Reject]:
    """Those among the images with equal files that cannot be decoded, by the origin that would stay for them.

    A scan that compares files decodes nothing, so the one of each group that would stay is decoded here.
    """
    entries = DiskTableWriter(LISTING_SCHEMA)
    for table, table_outcomes in _with_outcomes(scanned, outcomes):
        originals = table_outcomes.filter(pc.equal(table_outcomes["reason"], KEPT))
        entries.add(table.select(LISTING_SCHEMA.names).take(originals["index"]))
    decoded = scanner.scan(replace(corpus, entries=entries.close()), "decode", name="decode-copied")
    rejects = {}
    for table in decoded.chunks():
        for row in table.filter(pc.not_equal(table["reason"], "")).to_pylist():
            rejects[row["origin"]] = Reject(row["origin"], row["reason"], row["detail"])
    return rejects


def _apply(corpus: Corpus, scanned: DiskTable, outcomes: DiskTable, undecodable: dict[str, Reject]) -> Corpus:
    """*corpus* with each scanned row as an entry, a reject or a duplicate."""
    entries, rejects = DiskTableWriter(LISTING_SCHEMA), DiskTableWriter(REJECTS_SCHEMA)
    duplicates = DiskTableWriter(DUPLICATES_SCHEMA)
    for table in corpus.rejects.chunks():
        rejects.add(table)
    for table in corpus.duplicates.chunks():
        duplicates.add(table)
    for pair in _with_outcomes(scanned, outcomes):
        table, table_outcomes = _reject_copies(*pair, undecodable) if undecodable else pair
        copies = table_outcomes.filter(pc.not_equal(table_outcomes["reason"], KEPT))
        is_reject = pc.not_equal(table["reason"], "")
        stays = pc.invert(is_reject).to_numpy(zero_copy_only=False).copy()
        stays[copies["index"].to_numpy()] = False
        entries.add(table.select(LISTING_SCHEMA.names).filter(pa.array(stays)))
        rejects.add(table.select(REJECTS_SCHEMA.names).filter(is_reject))
        duplicates.add(copies.select(DUPLICATES_SCHEMA.names))
    return replace(corpus, entries=entries.close(), rejects=rejects.close(), duplicates=duplicates.close())


def _with_outcomes(scanned: DiskTable, outcomes: DiskTable) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The scanned rows in order, a table at a time, each with its outcomes and their ``index`` in that table."""
    tables, start = outcomes.chunks(), 0
    ahead = OUTCOME_SCHEMA.empty_table()
    for table in scanned.chunks():
        stop = start + table.num_rows
        pieces = [ahead]
        while not pieces[-1].num_rows or pieces[-1]["position"][-1].as_py() < stop:
            following = next(tables, None)
            if following is None:
                break
            pieces.append(following)
        ahead = pa.concat_tables(pieces)
        count = int(ahead["position"].to_numpy().searchsorted(stop))
        table_outcomes, ahead = ahead.slice(0, count), ahead.slice(count)
        yield table, table_outcomes.append_column("index", pc.subtract(table_outcomes["position"], start))
        start = stop


def _reject_copies(table: pa.Table, outcomes: pa.Table, rejects: dict[str, Reject]) -> tuple[pa.Table, pa.Table]:
    """*table* and *outcomes* once what has the same file as one of *rejects* counts as rejected."""
    of = pc.if_else(pc.equal(outcomes["reason"], "same-file"), outcomes["of"], outcomes["origin"])
    is_rejected = pc.is_in(of, pa.array(list(rejects), pa.string()))
    reasons, details = table["reason"].to_pylist(), table["detail"].to_pylist()
    rejected = outcomes.append_column("file", of).filter(is_rejected)
    for index, origin in zip(rejected["index"].to_pylist(), rejected["file"].to_pylist(), strict=True):
        reasons[index], details[index] = rejects[origin].reason, rejects[origin].detail
    for name, values in (("reason", reasons), ("detail", details)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table, outcomes.filter(pc.invert(is_rejected))
