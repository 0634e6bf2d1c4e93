"""``vitpipe demo``: the recipe ``tiny`` in one folder, on local disk or on a real S3 server that lives as long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from jobs.recipe import ChainRecipe, load_chain
from jobs.run import run
from pipeline.base.errors import RefusedError
from pipeline.base.progress import Progress

RECIPE = "tiny"
_BUCKET = "vitpipe-demo"

StoreKind = Literal["local", "s3"]


def demo(
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
    from infra.store.local_s3 import LocalS3, LocalS3Unavailable  # noqa: PLC0415
    from pipeline.base.store.s3 import S3Store  # noqa: PLC0415

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
    from jobs.cli import main

    main(["demo"])
