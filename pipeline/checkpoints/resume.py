"""Resume order: the run's own newest complete checkpoint, else the parent of a fork, else nothing.

Every byte that a rank needs is fetched and verified before the engine gets any of it, and the ranks agree on that: so a
damaged checkpoint is never half loaded, and no rank waits for another one that has given up.
"""

from __future__ import annotations

import logging

from pipeline.base.errors import DamageError, MismatchError
from pipeline.base.store.protocol import Store
from pipeline.base.world import Collective, run_on_all, run_on_first
from pipeline.checkpoints.card import check_complete, check_newest, quarantine, read_resumable
from pipeline.checkpoints.reader import CheckpointReader, WithEma, read_headers, shape_problems
from pipeline.checkpoints.retention import pin_fork
from pipeline.checkpoints.save import SaveContext
from pipeline.checkpoints.shard_file import RankHeader, fragment_range
from pipeline.checkpoints.state import Restorable
from pipeline.records.run import CheckpointCard, list_steps, parse_reference

_log = logging.getLogger(__name__)


def resume(saving: SaveContext, collective: Collective, engine: Restorable) -> CheckpointCard | None:
    """Load *engine* from where the run has to go on; the card of that, or None when there is nothing to resume.

    A card of another run is that of the fork's parent. Every rank has to call it. Raises MismatchError naming what
    differs, DamageError when the parent is damaged; and RefusedError kinds for a parent that is not there.
    """
    card = resume_newest(saving, collective, engine)
    if card is None and saving.parent is not None:
        card = _load_parent(saving, saving.parent, collective, engine)
    return card


def resume_newest(saving: SaveContext, collective: Collective, engine: Restorable) -> CheckpointCard | None:
    """Load *engine* from the own run's newest complete checkpoint; its card, or None when there is none.

    A damaged one is logged and quarantined, and the one before it is taken.
    """
    expected = {"fingerprint": saving.fingerprint, "dataset_digest": saving.dataset_digest}
    steps, _ = run_on_first(collective, lambda: list_steps(saving.workspace, saving.run))
    for step in reversed(steps or []):
        card, problems = _load(saving, collective, engine, (saving.run, step), expected)
        if card is not None:
            return card
        reason = "; ".join(problems)
        if collective.world.is_first:
            _log.warning("checkpoint of step %d of run %s is left out: %s", step, saving.run, reason)
        run_on_first(collective, lambda step=step, reason=reason: _quarantine(saving, step, reason))  # type: ignore[misc]
    return None


def _quarantine(saving: SaveContext, step: int, problem: str) -> None:
    check_newest(saving.workspace, saving.run, saving.attempt)
    quarantine(saving.workspace, saving.run, step, saving.attempt, problem)


def _load_parent(saving: SaveContext, parent: str, collective: Collective, engine: Restorable) -> CheckpointCard:
    """A fork goes on in the same data; everything else of its recipe may be another one."""
    run, step = parse_reference(parent)
    run_on_first(collective, lambda: pin_fork(saving.workspace, parent, saving.run))
    card, problems = _load(saving, collective, engine, (run, step), {"dataset_digest": saving.dataset_digest})
    if card is None:
        raise DamageError(f"{parent}, which run {saving.run} is forked from, is damaged: {'; '.join(problems)}")
    return card


def _load(
    saving: SaveContext,
    collective: Collective,
    engine: Restorable,
    reference: tuple[str, int],
    expected: dict[str, str],
) -> tuple[CheckpointCard | None, list[str]]:
    """The card once every rank has loaded it, or what is damaged. Every rank gets the same answer."""
    workspace, (run, step) = saving.workspace, reference
    opened, problems = run_on_first(collective, lambda: _open(workspace, run, step, expected))
    if opened is None:
        return None, problems
    card, headers = opened
    with CheckpointReader(workspace, card, headers) as reader:
        _, problems = run_on_all(collective, lambda: _fetch(reader, collective, engine))
        if problems:
            return None, problems
        differing = shape_problems(reader.shapes(), engine.shapes())
        if differing:
            raise MismatchError(_refusal(card, differing))
        engine.load(reader if run == saving.run else WithEma(reader))
    return card, []


def _open(
    workspace: Store, run: str, step: int, expected: dict[str, str]
) -> tuple[CheckpointCard, dict[str, RankHeader]]:
    card = read_resumable(workspace, run, step)
    problem = check_complete(workspace, card)
    if problem:
        raise DamageError(problem)
    stored = card.model_dump()
    fields = [f"{name}: {stored[name]} -> {value}" for name, value in expected.items() if stored[name] != value]
    if fields:
        raise MismatchError(_refusal(card, fields))
    return card, read_headers(workspace, card)


def _refusal(card: CheckpointCard, fields: list[str]) -> str:
    return f"checkpoint of step {card.step} of run {card.run} cannot be resumed: {'; '.join(fields)}"


def _fetch(reader: CheckpointReader, collective: Collective, engine: Restorable) -> None:
    """Verify the files that this rank needs. One of another model is verified too, before it is called that."""
    reader.fetch(fragment_range(fragment) for fragment in engine.fragments())
    world, card = collective.world, reader.card
    for file in card.every_file[world.rank :: world.size]:  # the ranks together look at every file
        if not reader.has(file.name):
            reader.verify(file)
