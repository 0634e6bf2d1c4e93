"""``vitpipe gc``: remove from a workspace what nothing names and nobody will read; first of all, tell what that is.

It knows its own prefixes and looks at nothing else; it reads no environment of a running job, so it may run at any
time, beside trainings, shardings and evaluations.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.base.errors import DamageError, InputError
from pipeline.base.leftover import Leftover
from pipeline.base.progress import Progress
from pipeline.base.quantities import format_bytes
from pipeline.base.store import ObjectInfo, Store
from pipeline.checkpoints.sweep import find_orphans
from pipeline.corpus.stage.manifest import MANIFEST, REQUEST
from pipeline.evaluate.leftovers import find_imported, find_tunings
from pipeline.shard.stale import find_stale

OWN_PREFIXES = ("corpora/", "datasets/", "evaluations/", "features/", "imported/", "reports/", "runs/")


def gc(workspace: Store, older_than_seconds: float, dry_run: bool, progress: Progress) -> dict[str, Any]:
    """Find, and unless *dry_run* remove; what was found, by kind, with keys, bytes and reasons.

    What a killed writer left counts once it is *older_than_seconds* old: it might be somebody's who is at it. Files of
    checkpoints need no age, as only the newest attempt of a run can commit any.
    """
    problems: list[str] = []
    found = {
        "checkpoints": list(_checkpoints(workspace, problems)),
        "corpora": list(_corpora(workspace, older_than_seconds)),
        "datasets": list(find_stale(workspace, older_than_seconds)),
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


def _checkpoints(workspace: Store, problems: list[str]) -> Iterator[Leftover]:
    runs = {info.key.split("/")[1] for info in workspace.list("runs/") if info.key.count("/") > 1}
    for run in sorted(runs):
        try:
            yield from list(find_orphans(workspace, run))
        except DamageError as error:
            problems.append(f"run {run} is left alone: {error}")


def _unless_unknown(what: str, find: Callable[[], Iterable[Leftover]], problems: list[str]) -> list[Leftover]:
    """What *find* finds; nothing, and a problem, where it cannot know what is needed."""
    try:
        return list(find())
    except (DamageError, InputError) as error:
        problems.append(f"{what} are left alone: {error}")
        return []


def _corpora(workspace: Store, older_than_seconds: float) -> Iterator[Leftover]:
    """Copies that were begun, and whose manifest never came. What is listed is not held: corpora are large."""
    newest: dict[str, float] = defaultdict(float)
    begun, ended = set[str](), set[str]()
    for info in workspace.list("corpora/"):
        _, name, rest = f"{info.key}/".split("/", 2)
        newest[name] = max(newest[name], info.modified)
        if rest == f"{REQUEST}/":
            begun.add(name)
        elif rest == f"{MANIFEST}/":
            ended.add(name)
    oldest = time.time() - older_than_seconds
    for name in sorted(begun - ended):
        if newest[name] < oldest:
            for info in workspace.list(f"corpora/{name}/"):
                yield Leftover(info.key, info.num_bytes, f"its {MANIFEST} never came")


def _features(workspace: Store, older_than_seconds: float) -> Iterator[Leftover]:
    """Parts of features whose card never came."""
    groups: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in workspace.list("features/"):
        groups[info.key.split("/")[1]].append(info)
    oldest = time.time() - older_than_seconds
    for identifier, infos in groups.items():
        has_card = any(info.key == f"features/{identifier}/features.json" for info in infos)
        if not has_card and max(info.modified for info in infos) < oldest:
            for info in infos:
                if info.key.startswith(f"features/{identifier}/part-"):
                    yield Leftover(info.key, info.num_bytes, "their features.json never came")


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


if __name__ == "__main__":
    from jobs.cli import main

    main(["gc"])
