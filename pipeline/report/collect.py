"""Read all that a report shows into one frozen value. Nothing after this touches the workspace but the final puts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.protocol import Store
from pipeline.records.dataset import DatasetCard, read_dataset_card
from pipeline.records.record import parse_record
from pipeline.records.run import (
    CheckpointCard,
    MetricsRow,
    RunCard,
    list_checkpoint_cards,
    list_retired_cards,
    read_run_card,
    run_prefix,
)
from pipeline.records.score import Score, list_results
from pipeline.report.artefacts import Artefacts, read_artefacts
from pipeline.report.scores import Joined, join_results, score_rows


@dataclass(frozen=True)
class Training:
    """The metrics of all attempts as one history. ``resumed_at``: the first steps of the attempts after the first."""

    rows: tuple[MetricsRow, ...]
    num_attempts: int
    resumed_at: tuple[int, ...]


@dataclass(frozen=True)
class Collected:
    """Everything stored about one run.

    ``retired`` are the cards of steps that retention removed: their scores are still of this run.
    ``dataset`` is None when the card of the run's dataset is gone, or is now of other content than the run was
    trained on; ``dataset_note`` then says which.
    """

    run: RunCard
    dataset: DatasetCard | None
    dataset_note: str
    checkpoints: tuple[CheckpointCard, ...]
    retired: tuple[CheckpointCard, ...]
    training: Training
    seconds: dict[str, float]
    joined: tuple[Joined, ...]
    scores: tuple[Score, ...]
    artefacts: Artefacts

    @property
    def last_step(self) -> int | None:
        """The step of the newest checkpoint that was trained at all; None when there is none."""
        trained = [card.step for card in self.checkpoints if card.step > 0]
        return max(trained, default=None)

    @property
    def shown_steps(self) -> tuple[int, ...]:
        """The steps that have a column: trained checkpoints, and removed ones of which scores are left."""
        left = {item.step for item in self.joined if item.step} & {card.step for card in self.retired}
        return tuple(sorted(left | {card.step for card in self.checkpoints if card.step > 0}))


def collect(workspace: Store, run: str) -> Collected:
    """Read *run* and what belongs to it. Raises InputError when there is no such run."""
    card = read_run_card(workspace, run)
    dataset, note = _dataset_of(workspace, card)
    checkpoints = tuple(list_checkpoint_cards(workspace, run))
    retired = tuple(list_retired_cards(workspace, run))
    joined = join_results((*checkpoints, *retired), list_results(workspace))
    return Collected(
        run=card,
        dataset=dataset,
        dataset_note=note,
        checkpoints=checkpoints,
        retired=retired,
        training=read_training(workspace, run),
        seconds=_read_seconds(workspace, run),
        joined=joined,
        scores=score_rows(run, joined),
        artefacts=read_artefacts(workspace, joined),
    )


def _dataset_of(workspace: Store, card: RunCard) -> tuple[DatasetCard | None, str]:
    if len(card.dataset_weights) > 1:
        return None, f"This run was trained on a mixture: {card.dataset_name}."
    try:
        dataset = read_dataset_card(workspace, next(iter(card.dataset_weights)))
    except InputError:
        return None, f"The card of dataset {card.dataset_name} is no longer in the workspace."
    if dataset.digest != card.dataset_digest:
        return None, (
            f"Dataset {card.dataset_name} now has digest {dataset.digest[:12]}; "
            f"this run was trained on {card.dataset_digest[:12]}."
        )
    return dataset, ""


def read_training(workspace: Store, run: str) -> Training:
    """Merge the metrics of all attempts by step; where two attempts logged a step, the later attempt counts."""
    prefix = f"{run_prefix(run)}/metrics/"
    attempts: dict[str, dict[int, MetricsRow]] = {}
    for info in workspace.list(prefix):
        attempt, _, part = info.key.removeprefix(prefix).partition("/")
        if not part.endswith(".jsonl"):
            continue
        rows = attempts.setdefault(attempt, {})
        for number, line in enumerate(workspace.read(info.key).splitlines(), start=1):
            row = parse_record(MetricsRow, line, f"{info.key} line {number}")
            rows[row.step] = row
    merged: dict[int, MetricsRow] = {}
    in_order = sorted(attempts, key=lambda name: (len(name), name))
    for attempt in in_order:
        merged |= attempts[attempt]
    resumed = tuple(min(attempts[attempt]) for attempt in in_order[1:] if attempts[attempt])
    return Training(tuple(merged[step] for step in sorted(merged)), len(attempts), resumed)


def _read_seconds(workspace: Store, run: str) -> dict[str, float]:
    where = f"{run_prefix(run)}/seconds.json"
    try:
        tree = json.loads(workspace.read(where))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise DamageError(f"{where} is not valid JSON", "delete it; only the times of the stages are lost") from None
    if not isinstance(tree, dict) or not all(isinstance(value, int | float) for value in tree.values()):
        raise DamageError(f"{where} is not an object of seconds", "delete it; only the times of the stages are lost")
    return {str(stage): float(value) for stage, value in tree.items()}
