"""Which steps are removed, and how, without hurting anybody who reads.

Kept are the newest ones, each n-th, step 0 (the untrained network, to which evaluation compares), what is pinned, and
always the newest one that is whole. With ``keep_last=1`` a newest one that goes bad later has nothing to fall back to.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.errors import DamageError
from pipeline.base.failpoints import reach
from pipeline.base.store import Store
from pipeline.checkpoints.pins import forked_steps, pinned_steps
from pipeline.checkpoints.whole import check_whole
from pipeline.records.run import (
    RETIRED,
    checkpoint_card_key,
    list_steps,
    parse_checkpoint_card,
    read_checkpoint_card,
    step_prefix,
)


@dataclass(frozen=True)
class Retention:
    """Keep the ``keep_last`` newest steps (0: all), and those that ``keep_every`` divides (0: no more)."""

    keep_last: int = 0
    keep_every: int = 0

    def superfluous(self, steps: list[int]) -> list[int]:
        """Which of *steps* nothing but a pin keeps. A pure function."""
        if self.keep_last <= 0:
            return []
        old = sorted(steps)[: -self.keep_last]
        return [step for step in old if step and not (self.keep_every and step % self.keep_every == 0)]


def apply_retention(workspace: Store, run: str, retention: Retention) -> list[int]:
    """Remove what *retention* does not keep and nobody needs; the steps that were removed."""
    steps = list_steps(workspace, run)
    chosen = retention.superfluous(steps)
    if not chosen:
        return []
    kept = pinned_steps(workspace, run) | forked_steps(workspace, run) | {_newest_whole(workspace, run, steps)}
    return [step for step in chosen if step not in kept and _retire(workspace, run, step)]


def _newest_whole(workspace: Store, run: str, steps: list[int]) -> int:
    """-1 when none is."""
    for step in reversed(steps):
        try:
            card = read_checkpoint_card(workspace, run, step)
        except DamageError:
            continue
        if check_whole(workspace, card) is None:
            return step
    return -1


def _retire(workspace: Store, run: str, step: int) -> bool:
    """Keep the card's text as ``retired.json``, remove the card, then, if still nobody needs the step, its files.

    Killed anywhere in between, it leaves a checkpoint, or files without a card, which a later sweep removes.
    """
    key = checkpoint_card_key(run, step)
    data = workspace.read(key)
    try:
        card = parse_checkpoint_card(data, run, step, key)
    except DamageError:
        return False  # nobody knows what belongs to it; the next resume sets it aside
    workspace.put(f"{step_prefix(run, step)}/{RETIRED}", data)
    reach("checkpoint.before-retire")
    workspace.delete(key)
    reach("checkpoint.in-retire")
    if step in pinned_steps(workspace, run):
        workspace.put_if_absent(key, data)
        return False
    for file in card.every_file:
        workspace.delete(f"{step_prefix(run, step)}/{file.name}")
        reach("checkpoint.in-retire-files")
    return True
