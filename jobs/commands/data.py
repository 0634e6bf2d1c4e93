"""Commands about corpora and datasets."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import typer

from jobs.console import make_progress, print_table, print_text
from jobs.options import (
    Address,
    Debug,
    Endpoint,
    Json,
    Overrides,
    Workspace,
    bucket_settings,
    changes,
    finish,
    needed,
    stores_of,
)
from jobs.recipe import ChainRecipe, ShardStage, load_chain, require
from pipeline.base.config import apply_overrides, build
from pipeline.base.errors import FailedError, InputError
from pipeline.base.store import open_store


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
    from jobs import stage as job
    from pipeline.corpus.stage import StageRecipe

    if check not in ("sizes", "digests"):
        raise InputError(f"--check {check}: there are sizes and digests")
    if overrides and "=" not in overrides[0] and not workspace and not to:
        workspace, *overrides = overrides
    target = job.target_uri(source, workspace, name, to)
    options = {"include": include or [], "exclude": exclude or [], "parallel": parallel}
    tree = apply_overrides(options, overrides or [])
    named = build(ChainRecipe, {"workspace": target, "stores": tree.pop("stores", {})}, "stage").stores
    recipe = build(StageRecipe, tree, "stage")
    reached = {"endpoint": source_endpoint, "profile": source_profile, "anonymous": anonymous or None}
    source_stores = named | bucket_settings(source, reached, named)
    if dry_run:
        estimated = job.estimate(source, recipe, make_progress(), source_stores=source_stores)
        shown = job.describe(estimated)
        finish(as_json, dataclasses.asdict(estimated), lambda: print_table(source, ("", "estimate"), shown))
        return
    target_stores = named | bucket_settings(target, {"endpoint": endpoint}, named)
    done = job.stage(
        source,
        target,
        recipe,
        make_progress(),
        source_stores=source_stores,
        target_stores=target_stores,
        check="digests" if check == "digests" else "sizes",
    )
    text = f"{done.as_text()}\nto shard it: vitpipe shard {done.data_uri} --name NAME -w WORKSPACE"
    finish(as_json, done.as_result(), lambda: print_text(text))


def shard(
    source: Annotated[
        str, typer.Argument(help="folder, file, s3:// prefix or object, embedded://NAME/SPLIT; or a recipe")
    ],
    overrides: Overrides = None,
    workspace: Workspace = None,
    name: Annotated[str | None, typer.Option(help="name of the dataset")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it will cost, and write nothing")] = False,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Shard a corpus into WebDataset tars, or all corpora of a recipe. Given again, damaged shards are made anew.

    `vitpipe shard photos/ --workspace ws --name photos seed=1 max_samples=5000 duplicates.within=pixels`
    """
    if source.endswith((".yaml", ".yml")):
        chain = load_chain(source, overrides or [], changes(workspace, endpoint))
        require(chain.shard, "shard", source)
    else:
        if not name:
            raise InputError("which name should the dataset have?", "add --name NAME")
        section = build(ShardStage, apply_overrides({"source": source, "name": name}, overrides or []), "shard")
        chain = ChainRecipe(workspace=needed(workspace), stores=stores_of(workspace, endpoint), shard=(section,))
    if dry_run:
        _show_estimates(chain, as_json)
    else:
        _show_datasets(chain, address, as_json, debug)


def _show_estimates(chain: ChainRecipe, as_json: bool) -> None:
    from jobs.shard import estimate_all

    found = estimate_all(chain)
    result = {"workspace": chain.workspace, "estimates": {name: cost.as_json() for name, cost in found}}
    finish(as_json, result, lambda: print_text("\n".join(f"{name}: {cost}" for name, cost in found)))


def _show_datasets(chain: ChainRecipe, address: str | None, as_json: bool, debug: bool) -> None:
    from jobs.shard import as_result
    from jobs.shard import shard as run_shard

    cards = run_shard(chain, make_progress(), address, debug)
    columns = ("dataset", "input", "written", "rejected", "duplicates", "shards", "digest")
    rows = [
        (
            card.name,
            f"{card.num_input:,}",
            f"{card.num_samples:,}",
            f"{card.num_rejected:,}",
            f"{card.num_duplicates:,}",
            f"{card.num_shards:,}",
            card.digest[:16],
        )
        for card in cards
    ]
    result = {"workspace": chain.workspace, "datasets": [as_result(card) for card in cards]}
    finish(as_json, result, lambda: print_table(chain.workspace, columns, rows))


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="datasets, and corpora/NAME for staged ones; default: all of them")
    ] = None,
    workspace: Workspace = None,
    fast: Annotated[bool, typer.Option("--fast", help="cards, tables and sizes only")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="also decode every sample, and read with stock webdataset")
    ] = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare datasets and staged corpora with their cards: every byte by default. Names damage, and exits 1."""
    from jobs.verify import verify as run_verify

    depth: Literal["fast", "bytes", "full"] = "full" if full else "fast" if fast else "bytes"
    uri, stores = needed(workspace), stores_of(workspace, endpoint)
    problems = run_verify(open_store(uri, stores), stores, names or [], depth, make_progress())
    found = [f"{name}: {problem}" for name, rows in problems.items() for problem in rows]
    result = {"workspace": uri, "depth": depth, "problems": problems}
    finish(as_json, result, lambda: print_text("\n".join(found) or f"whole ({depth}): {', '.join(problems)}"))
    if found:
        raise FailedError(f"{len(found)} problems; first: {found[0]}", "shard the dataset again, or stage the corpus")
