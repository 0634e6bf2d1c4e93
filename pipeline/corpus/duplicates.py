"""A scanned corpus without what cannot be used and without what it should have once, or not at all.

Input = entries + rejects + duplicates holds throughout, and all three are in the order of the listing. An image that
is both rejected and duplicate is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.rows import Rows, RowsWriter
from pipeline.base.store.protocol import Store
from pipeline.corpus.against import evaluation_images
from pipeline.corpus.equal import IMAGE_SCHEMA, KEPT, OUTCOME_SCHEMA, find_equal
from pipeline.corpus.recipe import DuplicatesRecipe
from pipeline.corpus.scan import Depth, Scanner
from pipeline.records.corpus import DUPLICATES_SCHEMA, LISTING_SCHEMA, REJECTS_SCHEMA, Corpus, Reject


def needed_depth(recipe: DuplicatesRecipe) -> Depth:
    """How deep a scan has to look for *recipe*."""
    if recipe.within == "pixels" or (recipe.against and recipe.against_by == "pixels"):
        return "pixels"
    return "file" if recipe.within == "file" or recipe.against else "bytes"


def without_duplicates(
    corpus: Corpus, scanned: Rows, recipe: DuplicatesRecipe, workspace: Store, scanner: Scanner
) -> Corpus:
    """*corpus* with the entries of *scanned* that can be used and that *recipe* leaves in.

    *scanned* comes of a scan of *corpus* as deep as ``needed_depth``; its entries are what ``corpus.reader`` reads.
    Raises InputError and DamageError for an evaluation set that is missing or damaged.
    """
    depth = needed_depth(recipe)
    outcomes, undecodable = RowsWriter(OUTCOME_SCHEMA), {}
    if depth != "bytes":
        images = chain(_images(scanned), _evaluation(recipe, workspace, scanner))
        for table in find_equal(images, scanned.num_rows, recipe):
            outcomes.add(table)
    found = outcomes.close()
    if depth == "file":
        undecodable = _undecodable(corpus, scanned, found, scanner)
    return _sorted_out(corpus, scanned, found, undecodable)


def _images(scanned: Rows) -> Iterator[pa.Table]:
    """The usable ones as rows of equal.IMAGE_SCHEMA."""
    start = 0
    for table in scanned.chunks():
        positions = pa.array(np.arange(start, start + table.num_rows))
        start += table.num_rows
        images = table.append_column("position", positions).select(IMAGE_SCHEMA.names)
        yield images.filter(pc.equal(table["reason"], ""))


def _evaluation(recipe: DuplicatesRecipe, workspace: Store, scanner: Scanner) -> Iterator[pa.Table]:
    for name in recipe.against:
        yield from evaluation_images(workspace, name, scanner, pixels=recipe.against_by == "pixels")


def _undecodable(corpus: Corpus, scanned: Rows, outcomes: Rows, scanner: Scanner) -> dict[str, Reject]:
    """Those among the images with equal files that cannot be decoded, by the origin that would stay for them.

    A scan that compares files decodes nothing, so the one of each group is decoded here.
    """
    entries = RowsWriter(LISTING_SCHEMA)
    for table, found in _paired(scanned, outcomes):
        kept = found.filter(pc.equal(found["reason"], KEPT))
        entries.add(table.select(LISTING_SCHEMA.names).take(kept["place"]))
    decoded = scanner.scan(replace(corpus, entries=entries.close()), "decode", name="decode-copied")
    rejects = {}
    for table in decoded.chunks():
        for row in table.filter(pc.not_equal(table["reason"], "")).to_pylist():
            rejects[row["origin"]] = Reject(row["origin"], row["reason"], row["detail"])
    return rejects


def _sorted_out(corpus: Corpus, scanned: Rows, outcomes: Rows, undecodable: dict[str, Reject]) -> Corpus:
    entries, rejects = RowsWriter(LISTING_SCHEMA), RowsWriter(REJECTS_SCHEMA)
    duplicates = RowsWriter(DUPLICATES_SCHEMA)
    for table in corpus.rejects.chunks():
        rejects.add(table)
    for table in corpus.duplicates.chunks():
        duplicates.add(table)
    for table, found in _paired(scanned, outcomes):
        if undecodable:
            table, found = _rejected_too(table, found, undecodable)  # noqa: PLW2901 - the rows of this round
        copies = found.filter(pc.not_equal(found["reason"], KEPT))
        is_reject = pc.not_equal(table["reason"], "")
        stays = pc.invert(is_reject).to_numpy(zero_copy_only=False).copy()
        stays[copies["place"].to_numpy()] = False
        entries.add(table.select(LISTING_SCHEMA.names).filter(pa.array(stays)))
        rejects.add(table.select(REJECTS_SCHEMA.names).filter(is_reject))
        duplicates.add(copies.select(DUPLICATES_SCHEMA.names))
    return replace(corpus, entries=entries.close(), rejects=rejects.close(), duplicates=duplicates.close())


def _paired(scanned: Rows, outcomes: Rows) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The scanned rows in order, a table at a time, each with its outcomes and their ``place`` in that table."""
    tables, start = outcomes.chunks(), 0
    ahead = OUTCOME_SCHEMA.empty_table()
    for table in scanned.chunks():
        stop = start + table.num_rows
        held = [ahead]
        while not held[-1].num_rows or held[-1]["position"][-1].as_py() < stop:
            following = next(tables, None)
            if following is None:
                break
            held.append(following)
        ahead = pa.concat_tables(held)
        count = int(ahead["position"].to_numpy().searchsorted(stop))
        found, ahead = ahead.slice(0, count), ahead.slice(count)
        yield table, found.append_column("place", pc.subtract(found["position"], start))
        start = stop


def _rejected_too(table: pa.Table, found: pa.Table, rejects: dict[str, Reject]) -> tuple[pa.Table, pa.Table]:
    """*table* and *found* once what has the same file as one of *rejects* counts as rejected."""
    of = pc.if_else(pc.equal(found["reason"], "same-file"), found["of"], found["origin"])
    is_rejected = pc.is_in(of, pa.array(list(rejects), pa.string()))
    reasons, details = table["reason"].to_pylist(), table["detail"].to_pylist()
    rejected = found.append_column("file", of).filter(is_rejected)
    for place, origin in zip(rejected["place"].to_pylist(), rejected["file"].to_pylist(), strict=True):
        reasons[place], details[place] = rejects[origin].reason, rejects[origin].detail
    for name, values in (("reason", reasons), ("detail", details)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table, found.filter(pc.invert(is_rejected))
