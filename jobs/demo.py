"""``vitpipe demo``: the recipe ``tiny`` in one folder, on local disk or on a real S3 server that lives as long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.base.console import make_progress
from jobs.base.entrypoint import main
from jobs.base.options import Address, Debug, Json, Overrides
from jobs.base.recipe import ChainRecipe, load_chain
from jobs.report import show_summary
from jobs.run import run_run as run
from pipeline.base.errors import InputError, RefusedError
from pipeline.base.progress import Progress

RECIPE = "tiny"
_BUCKET = "vitpipe-demo"
StoreKind = Literal["local", "s3"]


def run_demo(
    out: Path, seed: int, store: StoreKind, overrides: list[str], progress: Progress, address: str | None, debug: bool
) -> dict[str, Any]:
    """Run the chain into *out*; the report's summary. The page stands at ``out/report.html``."""
    with _workspace(out, store) as workspace:
        chain = demo_recipe(workspace, seed, overrides)
        return run(chain, RECIPE, progress, address, debug, out)


def demo_recipe(workspace: str, seed: int, overrides: list[str]) -> ChainRecipe:
    """The recipe with *seed* for sharding and pretraining. Explicit overrides win."""
    recipe = load_chain(RECIPE, [])
    seeds = [f"pretrain.seed={seed}", *(f"shard.{number}.seed={seed}" for number in range(len(recipe.shard)))]
    return load_chain(RECIPE, seeds + overrides, {"workspace": workspace})


@contextmanager
def _workspace(out: Path, store: StoreKind) -> Iterator[str]:
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
    kind: Literal["local", "s3"] = "s3" if store == "s3" else "local"
    summary = run_demo(out.absolute(), seed, kind, overrides or [], make_progress(), address, debug)
    show_summary(summary, as_json)


if __name__ == "__main__":
    main(demo)
