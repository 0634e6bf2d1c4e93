"""``stage_corpus``: request, list, copy, tables, manifest, in this order. Again, it goes on, or repairs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from pipeline.base.digests import differing_fields
from pipeline.base.disk_table import DiskTable
from pipeline.base.errors import ConflictError, DamageError, InputError, MismatchError, TooManyRejectsError
from pipeline.base.failpoints import fail_point
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.base.units import format_bytes, format_seconds
from pipeline.corpus.staging.cleanup import remove_leftovers, remove_unlisted
from pipeline.corpus.staging.estimate import estimate_listing
from pipeline.corpus.staging.journal import pending_entries
from pipeline.corpus.staging.manifest import (
    MANIFEST,
    REJECTS,
    REQUEST,
    TABLE,
    CopyEntry,
    ManifestWriter,
    StageManifest,
    StageRequest,
    write_table,
)
from pipeline.corpus.staging.plan import CopySource, Listing, list_source
from pipeline.corpus.staging.recipe import StageRecipe
from pipeline.corpus.staging.transfer import Transfer
from pipeline.corpus.staging.verify import CheckDepth, damaged_objects, damaged_tables
from pipeline.records.corpus import Reject, rejects_table
from pipeline.records.record import read_record

Outcome = Literal["copied", "present", "repaired"]
_LONG_BYTES = 1_000_000_000  # from there on a copy is long


@dataclass(frozen=True)
class StageResult:
    """The manifest of a stage, and what it did."""

    manifest: StageManifest
    outcome: Outcome


def stage_corpus(
    source: CopySource, target: Store, recipe: StageRecipe, progress: Progress, check: CheckDepth = "sizes"
) -> StageResult:
    """Copy what *recipe* takes of *source* to the corpus folder *target*.

    Where the same was staged before, it is compared with its manifest to the depth *check* and repaired. Raises
    InputError when there is nothing to copy, MismatchError when the target has another corpus, TooManyRejectsError
    (what was copied stays, and is not copied again), ConflictError when another stager was first with other content.
    """
    started = time.monotonic()
    request = StageRequest(source=source.uri, include=recipe.include, exclude=recipe.exclude)
    if f"{target.uri}/".startswith(f"{source.uri}/"):
        raise InputError(f"{target.uri} is inside the source {source.uri}", "stage to a place outside of it")
    _check_target(target, request)
    if target.head(MANIFEST) is not None:
        manifest, outcome = _check_and_repair(source, target, recipe, progress, check)
    else:
        listing = list_source(source, recipe, progress)
        if not target.put_if_absent(REQUEST, request.to_json()):
            _check_target(target, request)
        progress.message(f"stage {source.uri}: {_cost(source, listing, recipe)}")
        manifest, outcome = _publish(target, recipe, *_copy(source, target, recipe, listing, progress)), "copied"
    remove_leftovers(target, time.monotonic() - started)
    return StageResult(manifest, outcome)


def _cost(source: CopySource, listing: Listing, recipe: StageRecipe) -> str:
    """The cost of a copy as text. The time is measured for a long one only: that takes seconds itself."""
    estimate = estimate_listing(source, listing, recipe, 0.0 if listing.num_bytes >= _LONG_BYTES else None)
    requests = estimate.list_requests + estimate.get_requests + estimate.put_requests
    text = f"{estimate.num_objects} objects, {format_bytes(estimate.num_bytes)}, about {requests} requests"
    return f"{text}, about {format_seconds(estimate.seconds)}" if estimate.seconds else text


def _check_target(target: Store, request: StageRequest) -> None:
    """Raise MismatchError when *target* has something else than this *request* in it."""
    existing = _request_of(target)
    if existing is not None and existing != request:
        fields = differing_fields(request.model_dump(mode="json"), existing.model_dump(mode="json"))
        raise MismatchError(f"{target.uri} holds another corpus: {'; '.join(fields)}", "choose another name")
    if existing is None and next(iter(target.list()), None) is not None:
        raise MismatchError(f"{target.uri} is not empty, and no staged corpus", "choose another place")


def _request_of(target: Store) -> StageRequest | None:
    try:
        return read_record(StageRequest, target, REQUEST)
    except FileNotFoundError:
        return None


def _copy(
    source: CopySource, target: Store, recipe: StageRecipe, listing: Listing, progress: Progress
) -> tuple[ManifestWriter, list[Reject]]:
    writer, rejects = ManifestWriter(), list(listing.rejects)
    progress.start("stage", listing.rows.num_rows)
    transfer = Transfer(source.store, target, recipe, progress)
    for outcome in transfer.run(pending_entries(listing.entries(), target), listing.num_bytes):
        if isinstance(outcome, Reject):
            rejects.append(outcome)
        else:
            writer.add(outcome)
    progress.finish()
    return writer, sorted(rejects, key=lambda reject: reject.origin)


def _publish(target: Store, recipe: StageRecipe, writer: ManifestWriter, rejects: list[Reject]) -> StageManifest:
    rows, digest = writer.close()
    if target.head(MANIFEST) is not None:
        return _existing_manifest(target, digest)
    rejected = write_table(target, REJECTS, DiskTable.of(rejects_table(rejects)))
    if len(rejects) > recipe.tolerated_rejects or not writer.num_objects:
        raise TooManyRejectsError(
            f"{len(rejects)} objects cannot be copied (tolerated: {recipe.tolerated_rejects}), like"
            f" {rejects[0].origin}: {rejects[0].reason}",
            f"all are named in {target.uri}/{REJECTS}; the same command tries them again",
        )
    fail_point("stage.before-table")
    manifest = StageManifest(
        num_objects=writer.num_objects,
        num_bytes=writer.num_bytes,
        num_rejected=len(rejects),
        include=recipe.include,
        exclude=recipe.exclude,
        proofs=dict(sorted(writer.proofs.items())),
        tables={TABLE: write_table(target, TABLE, rows), REJECTS: rejected},
        digest=digest,
    )
    remove_unlisted(target)  # copied by an attempt that listed more in the source
    fail_point("stage.before-manifest")
    return manifest if target.put_if_absent(MANIFEST, manifest.to_json()) else _existing_manifest(target, digest)


def _existing_manifest(target: Store, digest: str) -> StageManifest:
    """The manifest of the stager that was first. Raises ConflictError when its content is not that of *digest*."""
    existing = read_record(StageManifest, target, MANIFEST)
    if existing.digest != digest:
        raise ConflictError(
            f"{target.uri}: another stager was first, and found other content in the source",
            "look with vitpipe verify, and stage under another name",
        )
    return existing


def _check_and_repair(
    source: CopySource, target: Store, recipe: StageRecipe, progress: Progress, check: CheckDepth
) -> tuple[StageManifest, Outcome]:
    manifest = read_record(StageManifest, target, MANIFEST)
    tables = damaged_tables(target, manifest)
    if tables:
        raise DamageError(f"{target.uri}: {tables[0]}", f"remove {MANIFEST} and give the same command again")
    broken = ManifestWriter()
    progress.start("compare with the manifest", manifest.num_objects)
    for copied, _ in damaged_objects(target, check, progress):
        broken.add(copied)
    progress.finish()
    remove_unlisted(target)
    if not broken.num_objects:
        return manifest, "present"
    _repair(source, target, recipe, broken, progress)
    return manifest, "repaired"


def _repair(source: CopySource, target: Store, recipe: StageRecipe, broken: ManifestWriter, progress: Progress) -> None:
    """Copy the *broken* objects again: the same bytes, or nothing."""
    entries = (
        CopyEntry(row["key"], row["num_bytes"], row["source_etag"], row["sha256"])
        for table in broken.close()[0].chunks()
        for row in table.to_pylist()
    )
    progress.start("repair", broken.num_objects)
    transfer = Transfer(source.store, target, recipe, progress)
    rejects = [outcome for outcome in transfer.run(entries, broken.num_bytes) if isinstance(outcome, Reject)]
    progress.finish()
    if rejects:
        raise DamageError(
            f"{target.uri}: {len(rejects)} objects cannot be repaired, like {rejects[0].origin}: {rejects[0].reason}",
            "stage again under another name",
        )
