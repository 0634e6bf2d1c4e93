"""Commands that keep a workspace in order."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import make_progress, print_table, print_text
from jobs.options import Debug, Endpoint, Json, Workspace, finish, needed, stores_of
from pipeline.base.errors import FailedError, InputError
from pipeline.base.store import open_store


def gc(
    where: Annotated[str | None, typer.Argument(metavar="WORKSPACE", help="folder or s3://bucket/prefix")] = None,
    workspace: Workspace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would be removed")] = False,
    older_than: Annotated[
        float, typer.Option(min=0.0, help="hours after which an unfinished write counts as given up")
    ] = 24.0,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove what killed work left in a workspace; never what a card names or somebody may read.

    That is: files of checkpoints that were never committed, claims of datasets that nobody makes any more, datasets
    and corpora that were given up unfinished, features whose card never came, imported weights without a name or a
    result, what fine-tunings kept that nobody asks for any more, unfinished writes. `vitpipe gc WORKSPACE --dry-run`
    tells it first.
    """
    from jobs.gc import describe, summary
    from jobs.gc import gc as collect

    if where and workspace and where != workspace:
        raise InputError("two workspaces were given", "leave one out")
    uri = needed(where or workspace)
    result = collect(open_store(uri, stores_of(uri, endpoint)), older_than * 3600, dry_run, make_progress())

    def show() -> None:
        rows = describe(result)
        if rows:
            print_table("Leftovers", ("kind", "object", "size", "why"), rows)
        print_text(summary(result))

    finish(as_json, result, show)
    if result["problems"]:
        raise FailedError(
            "; ".join(result["problems"]), "mend what is named; a resumed run sets its damaged checkpoints aside"
        )
