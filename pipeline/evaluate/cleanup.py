"""What evaluations left in a workspace that nothing refers to any more: found first, removed by whoever asked."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.base.store.protocol import ObjectInfo, Orphan, Store
from pipeline.evaluate.discovery import kept_suites, plan_all
from pipeline.evaluate.ledger import Ledger
from pipeline.evaluate.plan import Patterns
from pipeline.records.imported import IMPORTED, list_imported_cards
from pipeline.records.ledger import LEDGER
from pipeline.records.run import list_runs
from pipeline.records.score import list_results

_WEIGHTS = re.compile(r"imported/([0-9a-f]{64})/[^/]+")
_TUNING = re.compile(r"evaluations/([0-9a-f]{64})/tuning-[^/]+")  # transfer/keep.py writes them


def find_imported(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """Imported weights that no name stands for, and no result is of. Raises DamageError for a card that is damaged."""
    found = _old(workspace, IMPORTED, _WEIGHTS, older_than_seconds)
    if not found:
        return
    known = {card.weights.sha256 for card in list_imported_cards(workspace)}  # after the files: none is missed
    if set(found) - known:
        known |= {result.key.weights_digest for result in list_results(workspace)}
    for digest in sorted(set(found) - known):
        for info in found[digest]:
            yield Orphan(info.key, info.num_bytes, "no name and no result refers to these weights")


def find_tunings(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
    """What fine-tunings kept to go on from, where none will: recorded since, or of an evaluation nobody asks for.

    Raises VitpipeError when a suite cannot be planned: nobody knows then what it asks for.
    """
    found = _old(workspace, LEDGER, _TUNING, older_than_seconds)
    if not found:
        return
    ledger, now = Ledger(workspace, ""), time.time()
    ledger.refresh_some(found)
    states = {key: ledger.view[key].state(now) if key in ledger.view else "due" for key in found}
    is_open = any(state not in ("done", "running") for state in states.values())
    asked_for = _asked_for(workspace) if is_open else set()
    for evaluation_id in sorted(found):
        is_done = states[evaluation_id] == "done"
        if not is_done and (states[evaluation_id] == "running" or evaluation_id in asked_for):
            continue
        why = "its evaluation is recorded" if is_done else "no suite asks for its evaluation"
        for info in found[evaluation_id]:
            yield Orphan(info.key, info.num_bytes, why)


def _asked_for(workspace: Store) -> set[str]:
    """The ids of all that the suites of runs and imported weights ask for, and that is not cancelled."""
    found: set[str] = set()
    for name in [*list_runs(workspace), *(card.name for card in list_imported_cards(workspace))]:
        suites = kept_suites(workspace, name).values()
        ledger = Ledger(workspace, name)
        ledger.refresh_cancelled()
        unwanted = Patterns(ledger.cancelled)
        planned = plan_all(workspace, name, suites) if suites else []
        found |= {item.id for item in planned if not unwanted.match(item.name)}
    return found


def _old(
    workspace: Store, prefix: str, pattern: re.Pattern[str], older_than_seconds: float
) -> dict[str, list[ObjectInfo]]:
    """What matches, by the pattern's group, where all of a group are old enough."""
    groups: dict[str, list[ObjectInfo]] = {}
    for info in workspace.list(prefix):
        match = pattern.fullmatch(info.key)
        if match:
            groups.setdefault(match[1], []).append(info)
    oldest = time.time() - older_than_seconds
    return {group: infos for group, infos in groups.items() if max(info.modified for info in infos) < oldest}


def _features(workspace: Store, older_than_seconds: float) -> Iterator[Orphan]:
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
                    yield Orphan(info.key, info.num_bytes, "their features.json never came")
