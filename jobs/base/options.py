"""Options that several commands share, and how a result is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from jobs.base.console import print_json
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
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use; default: RAY_ADDRESS, else one is started for this command")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout; logs and progress go to stderr")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks and the logs of Ray")]
Endpoint = Annotated[str | None, typer.Option(help="S3 endpoint of the workspace's bucket; default: AWS_ENDPOINT_URL")]


def print_result(as_json: bool, result: dict[str, Any], show: Callable[[], None]) -> None:
    """Print *result* as one JSON object, or *show* it."""
    if as_json:
        print_json(result)
    else:
        show()


def changes(workspace: str | None, endpoint: str | None = None) -> dict[str, Any]:
    """Options that stand for top-level values of the recipe."""
    found: dict[str, Any] = {"workspace": workspace} if workspace else {}
    stores = stores_of(workspace, endpoint)
    if stores:
        found["stores"] = {name: settings.model_dump() for name, settings in stores.items()}
    return found


def stores_of(workspace: str | None, endpoint: str | None) -> Stores:
    """The settings that --endpoint stands for."""
    if not endpoint:
        return {}
    uri = normalise_uri(workspace or "")
    if not uri.startswith("s3://"):
        raise InputError("--endpoint is for an s3:// workspace", "leave it out")
    return build(ChainRecipe, {"workspace": uri, "stores": {uri.split("/")[2]: {"endpoint": endpoint}}}).stores


def bucket_settings(uri: str, given: dict[str, Any], known: Stores) -> Stores:
    """The settings of the bucket of *uri* with what is *given* as options; nothing given: nothing.

    Raises InputError when something is given for what is no bucket.
    """
    changed = {name: value for name, value in given.items() if value is not None}
    uri = normalise_uri(uri)
    if not changed:
        return {}
    if not uri.startswith("s3://"):
        raise InputError(f"--{next(iter(changed))} is for s3:// URIs", "leave it out")
    bucket = uri.split("/")[2]
    tree = known.get(bucket, BucketSettings()).model_dump() | changed
    return build(ChainRecipe, {"workspace": uri, "stores": {bucket: tree}}).stores


def require_workspace(workspace: str | None) -> str:
    """The workspace's URI. Raises InputError when none was given."""
    if not workspace:
        raise InputError("which workspace?", "add --workspace DIR or --workspace s3://bucket/prefix")
    return normalise_uri(workspace)


Task = Annotated[str | None, typer.Option(help="only this task; * and ? as in a shell")]
Evaluator = Annotated[str | None, typer.Option(help="only this evaluator: linear, knn, fewshot, finetune, ...")]


def _open(workspace: str | None, endpoint: str | None) -> Store:
    uri = require_workspace(workspace)
    return open_store(uri, stores_of(uri, endpoint))
