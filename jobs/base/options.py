"""Options that several commands share, and their results: the workspace's store, settings per bucket, changes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.base.recipe import ChainRecipe
from pipeline.base.config import build
from pipeline.base.errors import InputError
from pipeline.base.store.open import normalise_uri, open_store
from pipeline.base.store.protocol import BucketSettings, Store, Stores

Recipe = Annotated[str, typer.Argument(help="recipe file, or the name of one that ships with vitpipe (tiny)")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes, like pretrain.steps=100 or shard.0.max_samples=500")
]
Workspace = Annotated[
    str | None, typer.Option("--workspace", "-w", help="folder or s3://bucket/prefix; wins over the recipe's")
]
Endpoint = Annotated[str | None, typer.Option(help="S3 endpoint of the workspace's bucket; default: AWS_ENDPOINT_URL")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use; default: RAY_ADDRESS, else one is started for this command")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout; logs and progress go to stderr")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks and the logs of Ray")]
Task = Annotated[str | None, typer.Option(help="only this task; * and ? as in a shell")]
Evaluator = Annotated[str | None, typer.Option(help="only this evaluator: linear, knn, fewshot, finetune, ...")]


def require_workspace(workspace: str | None) -> str:
    """The workspace's URI. Raises InputError when --workspace is missing."""
    if not workspace:
        raise InputError("which workspace?", "add --workspace DIR or --workspace s3://bucket/prefix")
    return normalise_uri(workspace)


def open_workspace(workspace: str | None, endpoint: str | None) -> Store:
    """The store of --workspace. Raises InputError when it is missing."""
    uri = require_workspace(workspace)
    return open_store(uri, stores_of(uri, endpoint))


def workspace_recipe(workspace: str | None, endpoint: str | None) -> ChainRecipe:
    """A recipe of nothing but --workspace, for commands without one. Raises InputError when --workspace is missing."""
    return ChainRecipe(workspace=require_workspace(workspace), stores=stores_of(workspace, endpoint))


def recipe_changes(workspace: str | None, endpoint: str | None = None) -> dict[str, Any]:
    """Options that stand for top-level values of the recipe."""
    values: dict[str, Any] = {"workspace": workspace} if workspace else {}
    stores = stores_of(workspace, endpoint)
    if stores:
        values["stores"] = {name: settings.model_dump() for name, settings in stores.items()}
    return values


def stores_of(workspace: str | None, endpoint: str | None) -> Stores:
    """The settings that --endpoint stands for; without it, none. Raises InputError unless --workspace is a bucket."""
    if not endpoint:
        return {}
    uri = normalise_uri(workspace or "")
    if not uri.startswith("s3://"):
        raise InputError("--endpoint is for an s3:// workspace", "leave it out")
    return build(ChainRecipe, {"workspace": uri, "stores": {uri.split("/")[2]: {"endpoint": endpoint}}}).stores


def bucket_settings(uri: str, options: dict[str, Any], known: Stores) -> Stores:
    """The *known* settings of the bucket of *uri*, changed by *options* (name -> value, None: not set).

    Without an option nothing is returned. Raises InputError for an option when *uri* is no bucket.
    """
    changed = {name: value for name, value in options.items() if value is not None}
    uri = normalise_uri(uri)
    if not changed:
        return {}
    if not uri.startswith("s3://"):
        raise InputError(f"--{next(iter(changed))} is for s3:// URIs", "leave it out")
    bucket = uri.split("/")[2]
    tree = known.get(bucket, BucketSettings()).model_dump() | changed
    return build(ChainRecipe, {"workspace": uri, "stores": {bucket: tree}}).stores
