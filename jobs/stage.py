"""``vitpipe stage``: copy a corpus from any store into the workspace, or into any other store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.base.quantities import format_bytes, format_seconds
from pipeline.base.store import BucketSettings, Stores, normalise_uri, open_store
from pipeline.corpus.stage import (
    DATA,
    Estimate,
    StageRecipe,
    corpus_prefix,
    estimate_stage,
    open_source,
    stage_corpus,
)
from pipeline.corpus.stage.build import Stage
from pipeline.corpus.stage.listing import Source
from pipeline.corpus.stage.verify import Depth


@dataclass(frozen=True)
class StagedCorpus:
    """A corpus in its place."""

    uri: str
    stage: Stage

    @property
    def data_uri(self) -> str:
        """The folder to shard."""
        return f"{self.uri}/{DATA.rstrip('/')}"

    def as_result(self) -> dict[str, Any]:
        """The numbers, for ``--json``."""
        fields = {"num_objects", "num_bytes", "num_rejected", "proofs", "digest"}
        told = self.stage.manifest.model_dump(include=fields)
        return {"corpus": self.uri, "data": self.data_uri, "outcome": self.stage.outcome, **told}

    def as_text(self) -> str:
        """One line for people."""
        manifest = self.stage.manifest
        done = {"copied": "staged", "present": "already staged, nothing to do", "repaired": "repaired"}
        unproved = manifest.proofs.get("none", 0)
        kept = f"{manifest.num_objects} objects, {format_bytes(manifest.num_bytes)}, {manifest.num_rejected} rejected"
        note = f"; for {unproved} the source tells no checksum" if unproved else ""
        return f"{self.uri}: {done[self.stage.outcome]}: {kept}, digest {manifest.digest[:12]}{note}"


def stage(
    source: str,
    target: str,
    recipe: StageRecipe,
    progress: Progress,
    *,
    source_stores: Stores | None = None,
    target_stores: Stores | None = None,
    check: Depth = "sizes",
) -> StagedCorpus:
    """Copy the corpus at *source* to the corpus folder *target* (see :func:`target_uri`), as *recipe* says.

    The two may need two credentials, so each has its own settings per bucket. *check*: how what was staged before is
    compared with its manifest. Raises InputError, MismatchError, StoreAccessError, TooManyRejectsError, ConflictError.
    """
    there = open_store(target, _with_limits(target, target_stores, recipe))
    there.check_writable()
    done = stage_corpus(_open(source, source_stores, recipe), there, recipe, progress, check)
    return StagedCorpus(there.uri, done)


def estimate(
    source: str,
    recipe: StageRecipe,
    progress: Progress,
    *,
    source_stores: Stores | None = None,
    bytes_per_second: float = 0.0,
) -> Estimate:
    """What staging *source* would take (``--dry-run``). Writes nothing; the rate is measured unless it is given."""
    return estimate_stage(_open(source, source_stores, recipe), recipe, progress, bytes_per_second)


def target_uri(source: str, workspace: str | None, name: str | None, to: str | None) -> str:
    """Where a corpus goes: *name* in *workspace*, or the folder *to* itself. Raises InputError unless it is one.

    Without *name* it is called as the last part of *source*.
    """
    if to and not workspace and not name:
        return normalise_uri(to)
    if workspace and not to:
        return f"{normalise_uri(workspace)}/{corpus_prefix(name or normalise_uri(source).rpartition('/')[2])}"
    raise InputError("where to?", "give a workspace, and --name if you like, or --to URI alone")


def describe(estimated: Estimate) -> list[tuple[str, str]]:
    """The estimate as rows of a table."""
    left_out = f" ({estimated.num_left_out} left out)" if estimated.num_left_out else ""
    rows = [
        ("objects", f"{estimated.num_objects}{left_out}"),
        ("bytes", format_bytes(estimated.num_bytes)),
        ("requests", f"{estimated.list_requests} list, {estimated.get_requests} get, {estimated.put_requests} put"),
        ("rate", f"{format_bytes(int(estimated.bytes_per_second))}/s of reading"),
        ("time", f"about {format_seconds(estimated.seconds)}"),
    ]
    bad = [("cannot be copied", f"{estimated.num_rejected}, for their names")] if estimated.num_rejected else []
    return rows + bad


def _open(source: str, stores: Stores | None, recipe: StageRecipe) -> Source:
    return open_source(source, _with_limits(source, stores, recipe))


def _with_limits(uri: str, stores: Stores | None, recipe: StageRecipe) -> Stores:
    """*stores* with the recipe's limits for the bucket of *uri*."""
    uri = normalise_uri(uri)
    if not uri.startswith("s3://"):
        return stores or {}
    bucket = uri.split("/")[2]
    limits = {
        "connections": 2 * recipe.parallel,
        "low_speed_bytes": recipe.low_speed_bytes,
        "low_speed_seconds": recipe.low_speed_seconds,
    }
    settings = (stores or {}).get(bucket, BucketSettings())
    return {**(stores or {}), bucket: settings.model_copy(update=limits)}


if __name__ == "__main__":
    from jobs.cli import main

    main(["stage"])
