"""``vitpipe stage``: copy a corpus from any store into the workspace, or into any other store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_result, print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, bucket_settings
from jobs.base.recipe import ChainRecipe
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import InputError
from pipeline.base.progress import Progress
from pipeline.base.store.open import normalise_uri, open_store
from pipeline.base.store.protocol import BucketSettings, Stores
from pipeline.base.units import format_bytes, format_seconds
from pipeline.corpus.staging.estimate import StageEstimate, estimate_stage
from pipeline.corpus.staging.manifest import DATA, corpus_prefix
from pipeline.corpus.staging.plan import CopySource, open_source
from pipeline.corpus.staging.recipe import StageRecipe
from pipeline.corpus.staging.stage import StageResult, stage_corpus
from pipeline.corpus.staging.verify import CheckDepth


def stage(
    source: Annotated[str, typer.Argument(help="what to copy: an s3:// prefix or object, or a folder")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="the workspace, unless --workspace or --to says where to; then changes, like part_bytes=64MB or"
            " stores.BUCKET.requester_pays=true"
        ),
    ] = None,
    workspace: Workspace = None,
    name: Annotated[str | None, typer.Option(help="name of the corpus in the workspace; default: the source's")] = None,
    to: Annotated[str | None, typer.Option(help="folder or s3:// prefix to copy to, instead of a workspace")] = None,
    include: Annotated[list[str] | None, typer.Option(help="patterns to take, like '*.jpg' or 'train/**'")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="patterns to leave out; they win")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it will cost, and write nothing")] = False,
    check: Annotated[str, typer.Option(help="how a corpus that is there is compared: sizes or digests")] = "sizes",
    source_endpoint: Annotated[str | None, typer.Option(help="S3 endpoint of the source's bucket")] = None,
    source_profile: Annotated[str | None, typer.Option(help="credentials profile for the source's bucket")] = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="read the source without credentials")] = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a corpus into the workspace: verified, resumable, with a manifest. Given again, it mends what is damaged.

    `vitpipe stage s3://bucket/photos ws --exclude '*.txt'`
    """
    if check not in ("sizes", "digests"):
        raise InputError(f"--check {check}: there are sizes and digests")
    if overrides and "=" not in overrides[0] and not workspace and not to:
        workspace, *overrides = overrides
    target = target_uri(source, workspace, name, to)
    options = {"include": include or [], "exclude": exclude or [], "parallel": parallel}
    tree = apply_overrides(options, overrides or [])
    named = build(ChainRecipe, {"workspace": target, "stores": tree.pop("stores", {})}, "stage").stores
    recipe = build(StageRecipe, tree, "stage")
    source_options = {"endpoint": source_endpoint, "profile": source_profile, "anonymous": anonymous or None}
    source_stores = named | bucket_settings(source, source_options, named)
    if dry_run:
        estimated = estimate(source, recipe, make_progress(), source_stores=source_stores)
        rows = _estimate_rows(estimated)
        print_result(as_json, dataclasses.asdict(estimated), lambda: print_table(source, ("", "estimate"), rows))
        return
    target_stores = named | bucket_settings(target, {"endpoint": endpoint}, named)
    staged = run_stage(
        source,
        target,
        recipe,
        make_progress(),
        source_stores=source_stores,
        target_stores=target_stores,
        check="digests" if check == "digests" else "sizes",
    )
    text = f"{staged.as_text()}\nto shard it: vitpipe shard {staged.data_uri} --name NAME -w WORKSPACE"
    print_result(as_json, staged.as_result(), lambda: print_text(text))


@dataclass(frozen=True)
class StagedCorpus:
    """A corpus that was copied, or existed already: the URI of its folder, and what was done."""

    uri: str
    stage: StageResult

    @property
    def data_uri(self) -> str:
        """The folder to shard."""
        return f"{self.uri}/{DATA.rstrip('/')}"

    def as_result(self) -> dict[str, Any]:
        """The numbers, for ``--json``."""
        fields = {"num_objects", "num_bytes", "num_rejected", "proofs", "digest"}
        counts = self.stage.manifest.model_dump(include=fields)
        return {"corpus": self.uri, "data": self.data_uri, "outcome": self.stage.outcome, **counts}

    def as_text(self) -> str:
        """One line for people."""
        manifest = self.stage.manifest
        done = {"copied": "staged", "present": "already staged, nothing to do", "repaired": "repaired"}
        unproved = manifest.proofs.get("none", 0)
        counts = f"{manifest.num_objects} objects, {format_bytes(manifest.num_bytes)}, {manifest.num_rejected} rejected"
        note = f"; for {unproved} the source tells no checksum" if unproved else ""
        return f"{self.uri}: {done[self.stage.outcome]}: {counts}, digest {manifest.digest[:12]}{note}"


def run_stage(
    source: str,
    target: str,
    recipe: StageRecipe,
    progress: Progress,
    *,
    source_stores: Stores | None = None,
    target_stores: Stores | None = None,
    check: CheckDepth = "sizes",
) -> StagedCorpus:
    """Copy the corpus at *source* to the corpus folder *target* (see :func:`target_uri`), as *recipe* says.

    The two may need two credentials, so each has its own settings per bucket. *check*: how what was staged before is
    compared with its manifest. Raises InputError, MismatchError, StoreAccessError, TooManyRejectsError, ConflictError.
    """
    store = open_store(target, _with_limits(target, target_stores, recipe))
    store.check_writable()
    result = stage_corpus(_open(source, source_stores, recipe), store, recipe, progress, check)
    return StagedCorpus(store.uri, result)


def estimate(
    source: str,
    recipe: StageRecipe,
    progress: Progress,
    *,
    source_stores: Stores | None = None,
    bytes_per_second: float = 0.0,
) -> StageEstimate:
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


def _open(source: str, stores: Stores | None, recipe: StageRecipe) -> CopySource:
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


def _estimate_rows(estimated: StageEstimate) -> list[tuple[str, str]]:
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


if __name__ == "__main__":
    main(stage)
