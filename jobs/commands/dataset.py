"""Commands about one dataset: its card for people, a contact sheet, an index for another reader."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import make_progress, print_text
from jobs.options import Debug, Endpoint, Json, Workspace, finish, needed, stores_of

app = typer.Typer(no_args_is_help=True, help="Look at a dataset: show, sample, dali-index.")

Name = Annotated[str, typer.Argument(help="name of the dataset")]


@app.command()
def show(
    name: Name, workspace: Workspace = None, endpoint: Endpoint = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Print the card of a dataset: counts, classes and their balance, sizes, colours, what was left out and why."""
    from jobs.dataset import describe
    from jobs.dataset_tables import print_description

    found = describe(needed(workspace), stores_of(workspace, endpoint), name)
    finish(as_json, found, lambda: print_description(found))


@app.command()
def sample(
    name: Name,
    out: Annotated[str, typer.Option(help="PNG file to write")],
    workspace: Workspace = None,
    count: Annotated[int, typer.Option(min=1, max=1_000, help="samples to show")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="which samples: any of the dataset, each as likely")] = 0,
    class_name: Annotated[str | None, typer.Option("--class", help="samples of this class only")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a contact sheet of samples drawn at random. Reads only the samples it shows."""
    from jobs.dataset import sample as draw

    found = draw(needed(workspace), stores_of(workspace, endpoint), name, out, count, seed, class_name)
    finish(as_json, found, lambda: print_text(f"{found['samples']} samples of {name}: {found['out']}"))


@app.command("dali-index")
def dali_index(
    name: Name,
    out: Annotated[str, typer.Option(help="folder to write shard-000000.idx and so on to")],
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the index that DALI's webdataset reader wants of each shard. Reads no shard.

    Give DALI's `readers.webdataset` the tars as paths and these files as index_paths, in the same order.
    """
    from jobs.dataset import export_dali_indexes

    found = export_dali_indexes(needed(workspace), stores_of(workspace, endpoint), name, out, make_progress())
    finish(as_json, found, lambda: print_text(f"{found['files']} indexes: {found['out']}"))
