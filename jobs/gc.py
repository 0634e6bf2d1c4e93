"""``vitpipe gc``: remove from a workspace what nothing names and nobody will read; --dry-run lists it first.

It knows its own prefixes and looks at nothing else; it reads no environment of a running job, so it may run at any
time, beside trainings, shardings and evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_result, print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, open_workspace
from pipeline.base.errors import DamageError, FailedError, InputError
from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Orphan, Store
from pipeline.base.units import format_bytes
from pipeline.checkpoints.retention import find_orphans
from pipeline.corpus.staging.cleanup import find_unfinished
from pipeline.evaluate.cleanup import find_imported, find_tunings, find_unfinished_features
from pipeline.shard.cleanup import find_abandoned

_OWN_PREFIXES = ("corpora/", "datasets/", "evaluations/", "features/", "imported/", "reports/", "runs/")
_SECONDS_OF_AN_HOUR = 3600


def gc(
    workspace_argument: Annotated[
        str | None, typer.Argument(metavar="WORKSPACE", help="folder or s3://bucket/prefix")
    ] = None,
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
    if workspace_argument and workspace and workspace_argument != workspace:
        raise InputError("two workspaces were given", "leave one out")
    store = open_workspace(workspace_argument or workspace, endpoint)
    result = run_gc(store, older_than * _SECONDS_OF_AN_HOUR, dry_run, make_progress())

    def show() -> None:
        rows = _orphan_rows(result)
        if rows:
            print_table("Leftovers", ("kind", "object", "size", "why"), rows)
        print_text(summary(result))

    print_result(as_json, result, show)
    if result["problems"]:
        raise FailedError(
            "; ".join(result["problems"]), "mend what is named; a resumed run sets its damaged checkpoints aside"
        )


def run_gc(workspace: Store, older_than_seconds: float, dry_run: bool, progress: Progress) -> dict[str, Any]:
    """Find orphans, and unless *dry_run* remove them; the orphans by kind, with keys, bytes and reasons.

    What a killed writer left counts once it is *older_than_seconds* old: the writer may still be at work. Files of
    checkpoints need no age, as only the newest attempt of a run can commit any.
    """
    problems: list[str] = []
    orphans = {
        "checkpoints": list(_checkpoints(workspace, problems)),
        "corpora": list(find_unfinished(workspace, older_than_seconds)),
        "datasets": list(find_abandoned(workspace, older_than_seconds)),
        "features": list(find_unfinished_features(workspace, older_than_seconds)),
        "imported": _unless_unknown("imported weights", lambda: find_imported(workspace, older_than_seconds), problems),
        "tunings": _unless_unknown("kept tunings", lambda: find_tunings(workspace, older_than_seconds), problems),
    }
    unfinished = sum(workspace.sweep(prefix, older_than_seconds, dry_run) for prefix in _OWN_PREFIXES)
    every = [orphan for group in orphans.values() for orphan in group]
    progress.start("would remove" if dry_run else "remove", len(every))
    for orphan in every:
        if not dry_run:
            workspace.delete(orphan.key)
        progress.advance(note=orphan.key)
    progress.finish()
    return {
        "workspace": workspace.uri,
        "dry_run": dry_run,
        "found": {kind: [vars(orphan) for orphan in group] for kind, group in orphans.items()},
        "unfinished_writes": unfinished,
        "bytes": sum(orphan.num_bytes for orphan in every),
        "problems": problems,
    }


def _checkpoints(workspace: Store, problems: list[str]) -> Iterator[Orphan]:
    runs = {info.key.split("/")[1] for info in workspace.list("runs/") if info.key.count("/") > 1}
    for run in sorted(runs):
        try:
            yield from list(find_orphans(workspace, run))
        except DamageError as error:
            problems.append(f"run {run} is left alone: {error}")


def _unless_unknown(kind: str, find: Callable[[], Iterable[Orphan]], problems: list[str]) -> list[Orphan]:
    """What *find* returns; nothing, and a problem, where damage hides what is still needed."""
    try:
        return list(find())
    except (DamageError, InputError) as error:
        problems.append(f"{kind} are left alone: {error}")
        return []


def _orphan_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (kind, row["key"], format_bytes(row["num_bytes"]), row["why"])
        for kind, rows in result["found"].items()
        for row in rows
    ]


def summary(result: dict[str, Any]) -> str:
    """One line for people."""
    count = sum(len(rows) for rows in result["found"].values())
    verb = "would remove" if result["dry_run"] else "removed"
    return (
        f"{verb} {count} objects ({format_bytes(result['bytes'])}) and {result['unfinished_writes']} unfinished writes "
        f"in {result['workspace']}"
    )


if __name__ == "__main__":
    main(gc)
