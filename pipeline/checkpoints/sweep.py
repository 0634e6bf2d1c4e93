"""What no card names and nobody will ever read: found first, removed by whoever asked. Knows only its own prefixes.

Left alone are: what a card lists, what is kept as evidence (``damaged-*.json``, ``retired.json``), pinned steps, and
what the newest attempt may be writing now, which is everything of it after the last step that it committed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.base.leftover import Leftover
from pipeline.base.store import ObjectInfo, Store
from pipeline.checkpoints.attempts import list_attempts
from pipeline.checkpoints.pins import pinned_steps
from pipeline.records.run import CheckpointCard, list_checkpoint_cards, run_prefix

_WRITTEN = re.compile(r"step-(\d{8,})/(\d{4,})/([^/]+)")  # step, attempt, file


def find_orphans(workspace: Store, run: str) -> Iterator[Leftover]:
    """Files of *run*'s checkpoints that no card lists and that no attempt is about to.

    Raises DamageError when a card cannot be read: nobody knows then what belongs to it.
    """
    prefix = f"{run_prefix(run)}/checkpoints/"
    written = [(info, found) for info in list(workspace.list(prefix)) if (found := _written(prefix, info))]
    cards = {card.step: card for card in list_checkpoint_cards(workspace, run)}  # after the files: none is missed
    attempts = list_attempts(workspace, run)
    newest = attempts[-1] if attempts else ""
    committed = max((card.step for card in cards.values() if card.attempt == newest), default=-1)
    pinned = pinned_steps(workspace, run)
    for info, (step, attempt, name) in written:
        is_ahead = attempt == newest and step >= committed
        if step not in pinned and not is_ahead and not _is_listed(cards.get(step), f"{attempt}/{name}"):
            why = f"attempt {attempt} did not commit it" if step not in cards else "the step's card does not list it"
            yield Leftover(info.key, info.num_bytes, why)


def _written(prefix: str, info: ObjectInfo) -> tuple[int, str, str] | None:
    found = _WRITTEN.fullmatch(info.key.removeprefix(prefix))
    return (int(found[1]), found[2], found[3]) if found else None


def _is_listed(card: CheckpointCard | None, name: str) -> bool:
    return card is not None and any(file.name == name for file in card.every_file)
