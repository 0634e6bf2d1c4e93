"""``vitpipe gc``: remove from a workspace what nothing names and nobody will read; first of all, tell what that is.

It knows its own prefixes and looks at nothing else; it reads no environment of a running job, so it may run at any
time, beside trainings, shardings and evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, print_result, require_workspace, stores_of
from pipeline.base.errors import DamageError, FailedError, InputError
from pipeline.base.progress import Progress
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Orphan, Store
from pipeline.base.units import format_bytes
from pipeline.checkpoints.retention import find_orphans
from pipeline.corpus.staging.cleanup import _corpora
from pipeline.evaluate.cleanup import _features, find_imported, find_tunings
from pipeline.shard.cleanup import find_abandoned

OWN_PREFIXES = ("corpora/", "datasets/", "evaluations/", "features/", "imported/", "reports/", "runs/")


def run_gc(workspace: Store, older_than_seconds: float, dry_run: bool, progress: Progress) -> dict[str, Any]:
    """Find, and unless *dry_run* remove; what was found, by kind, with keys, bytes and reasons.

    What a killed writer left counts once it is *older_than_seconds* old: it might be somebody's who is at it. Files of
    checkpoints need no age, as only the newest attempt of a run can commit any.
    """
    problems: list[str] = []
    found = {
        "checkpoints": list(_checkpoints(workspace, problems)),
        "corpora": list(_corpora(workspace, older_than_seconds)),
        "datasets": list(find_abandoned(workspace, older_than_seconds)),
        "features": list(_features(workspace, older_than_seconds)),
        "imported": _unless_unknown("imported weights", lambda: find_imported(workspace, older_than_seconds), problems),
        "tunings": _unless_unknown("kept tunings", lambda: find_tunings(workspace, older_than_seconds), problems),
    }
    unfinished = sum(workspace.sweep(prefix, older_than_seconds, dry_run) for prefix in OWN_PREFIXES)
    total = sum(len(leftovers) for leftovers in found.values())
    progress.start("would remove" if dry_run else "remove", total)
    for leftover in (leftover for leftovers in found.values() for leftover in leftovers):
        if not dry_run:
            workspace.delete(leftover.key)
        progress.advance(note=leftover.key)
    progress.finish()
    kinds = {kind: [vars(leftover) for leftover in leftovers] for kind, leftovers in found.items()}
    return {
        "workspace": workspace.uri,
        "dry_run": dry_run,
        "found": kinds,
        "unfinished_writes": unfinished,
        "bytes": sum(leftover.num_bytes for leftovers in found.values() for leftover in leftovers),
        "problems": problems,
    }


def _checkpoints(workspace: Store, problems: list[str]) -> Iterator[Orphan]:
    runs = {info.key.split("/")[1] for info in workspace.list("runs/") if info.key.count("/") > 1}
    for run in sorted(runs):
        try:
            yield from list(find_orphans(workspace, run))
        except DamageError as error:
            problems.append(f"run {run} is left alone: {error}")


def _unless_unknown(what: str, find: Callable[[], Iterable[Orphan]], problems: list[str]) -> list[Orphan]:
    """What *find* finds; nothing, and a problem, where it cannot know what is needed."""
    try:
        return list(find())
    except (DamageError, InputError) as error:
        problems.append(f"{what} are left alone: {error}")
        return []


def describe(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of a table: kind, key, size, why."""
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

    if where and workspace and where != workspace:
        raise InputError("two workspaces were given", "leave one out")
    uri = require_workspace(where or workspace)
    result = run_gc(open_store(uri, stores_of(uri, endpoint)), older_than * 3600, dry_run, make_progress())

    def show() -> None:
        rows = describe(result)
        if rows:
            print_table("Leftovers", ("kind", "object", "size", "why"), rows)
        print_text(summary(result))

    print_result(as_json, result, show)
    if result["problems"]:
        raise FailedError(
            "; ".join(result["problems"]), "mend what is named; a resumed run sets its damaged checkpoints aside"
        )


if __name__ == "__main__":
    main(gc)
