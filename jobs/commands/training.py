"""Commands about runs: pretraining, evaluation, the page, and all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import make_progress, print_text
from jobs.options import (
    Address,
    Debug,
    Endpoint,
    Json,
    Overrides,
    Recipe,
    Workspace,
    changes,
    finish,
    needed,
    show_summary,
    stores_of,
)
from jobs.recipe import ChainRecipe, load_chain, require
from pipeline.base.errors import InputError


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
    from jobs.demo import demo as run_demo

    if store not in ("local", "s3"):
        raise InputError(f"--store {store}: there are local and s3")
    kind: Literal["local", "s3"] = "s3" if store == "s3" else "local"
    summary = run_demo(out.absolute(), seed, kind, overrides or [], make_progress(), address, debug)
    show_summary(summary, as_json)


def pretrain(
    recipe: Recipe = "tiny",
    overrides: Overrides = None,
    workspace: Workspace = None,
    run_name: Annotated[str | None, typer.Option("--run", help="name of the run; wins over the recipe's")] = None,
    dataset: Annotated[str | None, typer.Option(help="name of the dataset; wins over the recipe's")] = None,
    parent: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN@STEP", help="fork: a new run that goes on from another's checkpoint"),
    ] = None,
    extend: Annotated[
        int, typer.Option(min=0, metavar="STEPS", help="let the run have this many steps in all; 0: as many as it has")
    ] = 0,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain the run of a recipe, or go on with it from its newest checkpoint.

    A fork (--from) takes over weights, optimizer and stream position; learning rate, schedule, steps, augmentation may
    be others. --extend lengthens a run as if it had been that long from the start: with a constant or rsqrt schedule,
    or before a cool-down begins.
    """
    from jobs.pretrain import Lineage
    from jobs.pretrain import pretrain as run_pretrain

    named = [f"pretrain.run={run_name}"] if run_name else []
    named += [f"pretrain.dataset={dataset}"] if dataset else []
    chain = load_chain(recipe, named + (overrides or []), changes(workspace, endpoint))
    section = require(chain.pretrain, "pretrain", recipe)
    steps = run_pretrain(chain, section, make_progress(), address, debug, Lineage(parent, extend))
    result = {"workspace": chain.workspace, "run": section.run, "checkpoints": steps}
    finish(as_json, result, lambda: print_text(f"run {section.run}: checkpoints of steps {', '.join(map(str, steps))}"))


def report(
    run_or_recipe: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="a run, or the recipe that names it")],
    workspace: Workspace = None,
    out: Annotated[Path | None, typer.Option(help="folder to copy page, scores and summary to")] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Render the page of a run: report.html, scores.parquet and summary.json."""
    from jobs.report import report as run_report

    if run_or_recipe.endswith((".yaml", ".yml")):
        chain = load_chain(run_or_recipe, [], changes(workspace, endpoint))
        run_name = require(chain.pretrain, "pretrain", run_or_recipe).run
    else:
        chain = ChainRecipe(workspace=needed(workspace), stores=stores_of(workspace, endpoint))
        run_name = run_or_recipe
    show_summary(run_report(chain, run_name, make_progress(), out), as_json)


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    workspace: Workspace = None,
    out: Annotated[Path | None, typer.Option(help="folder to copy page, scores and summary to")] = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole chain of a recipe: shard, pretrain, evaluate, report."""
    from jobs.run import run as run_chain

    chain = load_chain(recipe, overrides or [], changes(workspace, endpoint))
    show_summary(run_chain(chain, recipe, make_progress(), address, debug, out), as_json)
