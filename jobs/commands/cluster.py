"""Commands about clusters, workspaces and machines."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jobs.console import make_progress, print_table, print_text
from jobs.options import Debug, Endpoint, Json, Overrides, Recipe, Workspace, changes, finish, needed, stores_of
from jobs.recipe import load_chain
from pipeline import __version__
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store import open_store


def submit(
    stage: Annotated[str, typer.Argument(help="run, shard, pretrain, evaluate or report")],
    recipe: Recipe,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="dashboard of the cluster; default: RAY_API_SERVER_ADDRESS, else local")
    ] = None,
    workspace: Workspace = None,
    wait: Annotated[bool, typer.Option(help="follow the job's log to its end")] = True,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Send a stage, or the whole chain (`run`), to a cluster as a Ray job.

    `vitpipe submit run recipe.yaml --address http://127.0.0.1:8265`
    """
    from jobs.submit import STAGES
    from jobs.submit import submit as run_submit

    if stage not in STAGES:
        raise InputError(f"{stage!r} cannot be submitted", f"there are: {', '.join(STAGES)}")
    chain = load_chain(recipe, overrides or [], changes(workspace, endpoint))
    where = address or os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    result = run_submit(stage, chain, where, wait, make_progress())
    finish(as_json, result, lambda: print_text(f"{result['submission_id']}: {result['status']}"))


def status(
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a workspace holds: datasets, runs and their checkpoints, imported weights, evaluations, reports."""
    from jobs.status import describe
    from jobs.status import status as find_status

    found = find_status(open_store(needed(workspace), stores_of(workspace, endpoint)))

    def show() -> None:
        for title, columns, rows in describe(found):
            print_table(title, columns, rows)

    finish(as_json, found, show)


def doctor(workspace: Workspace = None, endpoint: Endpoint = None, as_json: Json = False, debug: Debug = False) -> None:
    """Check this machine, and with --workspace whether it can be written."""
    from jobs.doctor import doctor as run_checks

    checks = run_checks(workspace, stores_of(workspace, endpoint))
    result = {"checks": [{"what": what, "fine": fine, "detail": detail} for what, fine, detail in checks]}
    rows = [(what, "ok" if fine else "PROBLEM", detail) for what, fine, detail in checks]
    finish(as_json, result, lambda: print_table(f"vitpipe {__version__}", ("check", "", "found"), rows))
    bad = [what for what, fine, _ in checks if not fine]
    if bad:
        raise RecipeError([f"not fit: {', '.join(bad)}"], "doctor")
