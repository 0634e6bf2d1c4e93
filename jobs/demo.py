"""``vitpipe demo``: the recipe ``tiny`` in one folder, on local disk or on a real S3 server that lives as long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from jobs.base.console import make_progress
from jobs.base.entrypoint import main
from jobs.base.options import Address, Debug, Json, Overrides
from jobs.base.recipe import ChainRecipe, load_chain
from jobs.run import run_chain
from jobs.scores import print_summary
from pipeline.base.errors import InputError, RefusedError

_RECIPE = "tiny"
_BUCKET = "vitpipe-demo"


def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="folder for the workspace and the page")] = Path("vitpipe-demo"),
    seed: Annotated[int, typer.Option(min=0, help="of shuffling, weights and augmentation")] = 0,
    store: Annotated[str, typer.Option(help="local, or s3: a real S3 server on loopback, while it runs")] = "local",
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole chain on embedded images: 10,000 of Fashion-MNIST, judged on them and on handwritten digits."""
    if store not in ("local", "s3"):
        raise InputError(f"--store {store}: there are local and s3")
    out = out.absolute()
    with _workspace(out, store) as workspace:
        chain = _demo_recipe(workspace, seed, overrides or [])
        summary = run_chain(chain, _RECIPE, make_progress(), address, debug, out)
    print_summary(summary, as_json)


def _demo_recipe(workspace: str, seed: int, overrides: list[str]) -> ChainRecipe:
    """The recipe with *seed* for sharding and pretraining. Explicit overrides win."""
    recipe = load_chain(_RECIPE, [])
    seeds = [f"pretrain.seed={seed}", *(f"shard.{number}.seed={seed}" for number in range(len(recipe.shard)))]
    return load_chain(_RECIPE, seeds + overrides, {"workspace": workspace})


@contextmanager
def _workspace(out: Path, store: str) -> Iterator[str]:
    """The URI of a workspace in *out*, or in a bucket of a server that keeps its objects there."""
    if store == "local":
        yield str(out / "workspace")
        return
    # Imported here: a server and boto3 are for this option alone.
    from infra.local.s3_server import LocalS3, LocalS3Unavailable
    from pipeline.base.store.s3 import S3Store

    folder = out / "s3"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            server = stack.enter_context(LocalS3(folder))
        except LocalS3Unavailable as error:
            raise RefusedError(f"no local S3 server: {error}") from None
        os.environ.update(server.environment())
        S3Store(_BUCKET, "").create_bucket()
        yield f"s3://{_BUCKET}/workspace"


if __name__ == "__main__":
    main(demo)
