"""Commands about the stream of a dataset into training: how fast it is and why, and what it has handed out."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import make_progress
from jobs.options import Debug, Endpoint, Json, Workspace, finish, needed, stores_of
from pipeline.base.errors import FailedError
from pipeline.base.store import open_store

app = typer.Typer(no_args_is_help=True, help="The stream of a dataset into training: bench, audit.")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="name of the dataset")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="what pretrain.stream would say, like batch_size=1024 workers=4 augment.size=160"),
    ] = None,
    workspace: Workspace = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="of each measurement; there are three or four")] = 10.0,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="measure one rank of so many; default: of as many as there are partitions")
    ] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure each stage of the stream on real samples in stream order, then the loader; name the bottleneck.

    Stages are measured in one process; the loader in the rank itself and with *workers* loader processes (default: one
    for each core). Nothing is written to the workspace. How well the order shuffles is told as well.
    """
    from jobs.stream import bench as run_bench
    from jobs.stream_tables import print_bench

    found = run_bench(
        needed(workspace), stores_of(workspace, endpoint), name, overrides or [], seconds, world_size, make_progress()
    )
    finish(as_json, found, lambda: print_bench(found))


@app.command()
def audit(
    run: Annotated[str, typer.Argument(help="name of a run that was trained with stream.audit=true")],
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove from the audit log of a run that each sample was seen exactly once per epoch. Exits 1 when it was not."""
    from jobs.stream import audit as run_audit
    from jobs.stream_tables import print_audit

    found = run_audit(open_store(needed(workspace), stores_of(workspace, endpoint)), run)
    finish(as_json, found, lambda: print_audit(found))
    if found["num_problems"]:
        raise FailedError(f"{run}: {found['num_problems']} problems; first: {found['problems'][0]}")
