"""Leftovers of evaluations in a workspace: what nothing refers to any more. Found here, removed by the caller.

Three kinds: imported weights, states of fine-tunings, and features that were never completed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from pipeline.base.store.protocol import ObjectInfo, Orphan, Store
from pipeline.evaluate.discovery import plan_all, stored_suites
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.plan import Patterns
from pipeline.records.imported import IMPORTED, list_imported_cards
from pipeline.records.ledger import LEDGER
from pipeline.records.run import list_runs
from pipeline.records.score import list_results

# Files that belong together have the same first group.
_WEIGHTS = re.compile(r"imported/([0-9a-f]{64})/[^/]+")
_TUNING = re.compile(r"evaluations/([0-9a-f]{64})/tuning-[^/]+")  # finetuning/trainer.py writes them
_FEATURES = re.compile(r"features/([^/]+)(/.*)?")


def find_imported(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """Imported weights that no name refers to, and no result is of. Raises DamageError for a card that is damaged."""
    groups = _old_groups(workspace, IMPORTED, _WEIGHTS, older_than_seconds)
    if not groups:
        return
    known = {card.weights.sha256 for card in list_imported_cards(workspace)}  # after the files: none is missed
    if set(groups) - known:
        known |= {result.key.weights_digest for result in list_results(workspace)}
    for digest in sorted(set(groups) - known):
        for info in groups[digest]:
            yield Orphan(info.key, info.num_bytes, "no name and no result refers to these weights")


def find_tunings(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """States of fine-tunings that nothing will resume from: recorded since, or of an evaluation that no suite asks for.

    Raises VitpipeError when a suite cannot be planned: then it is not known what it asks for.
    """
    groups = _old_groups(workspace, LEDGER, _TUNING, older_than_seconds)
    if not groups:
        return
    ledger, now = Ledger(workspace, ""), time.time()
    ledger.refresh_some(groups)
    states = {key: ledger.view[key].state(now) if key in ledger.view else "due" for key in groups}
    is_open = any(state not in ("done", "running") for state in states.values())
    requested = _requested_ids(workspace) if is_open else set()
    for evaluation_id in sorted(groups):
        is_done = states[evaluation_id] == "done"
        if not is_done and (states[evaluation_id] == "running" or evaluation_id in requested):
            continue
        reason = "its evaluation is recorded" if is_done else "no suite asks for its evaluation"
        for info in groups[evaluation_id]:
            yield Orphan(info.key, info.num_bytes, reason)


def find_unfinished_features(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """Parts of features whose card never came."""
    for identifier, infos in _old_groups(workspace, "features/", _FEATURES, older_than_seconds).items():
        if any(info.key == f"features/{identifier}/features.json" for info in infos):
            continue
        for info in infos:
            if info.key.startswith(f"features/{identifier}/part-"):
                yield Orphan(info.key, info.num_bytes, "their features.json never came")


def _requested_ids(workspace: Store) -> set[str]:
    """The ids of all that the suites of runs and imported weights ask for, and that is not cancelled."""
    requested: set[str] = set()
    for name in [*list_runs(workspace), *(card.name for card in list_imported_cards(workspace))]:
        suites = stored_suites(workspace, name).values()
        ledger = Ledger(workspace, name)
        ledger.refresh_cancelled()
        cancelled = Patterns(ledger.cancelled)
        planned = plan_all(workspace, name, suites) if suites else []
        requested |= {evaluation.id for evaluation in planned if not cancelled.match(evaluation.name)}
    return requested


def _old_groups(
    workspace: Store, prefix: str, pattern: re.Pattern[str], older_than_seconds: float
) -> dict[str, list[ObjectInfo]]:
    """The files that match *pattern*, by its first group, where all files of a group are old enough."""
    groups: dict[str, list[ObjectInfo]] = {}
    for info in workspace.list(prefix):
        match = pattern.fullmatch(info.key)
        if match:
            groups.setdefault(match[1], []).append(info)
    oldest = time.time() - older_than_seconds
    return {group: infos for group, infos in groups.items() if max(info.modified for info in infos) < oldest}
