"""Read all that a report shows into one frozen value, pictures of the model included, with their shapes checked.

Nothing after this touches the workspace but the final puts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.base.digests import sha256_hex
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
from pipeline.records.score import ARTEFACTS, Score, file_key, list_results
from pipeline.report.scores import ScoredResult, join_results, score_rows

Array = npt.NDArray[Any]
_INSPECT = "inspect"  # the evaluator whose artefacts the page shows
_NUM_DIMENSIONS = {  # of each array among the artefacts
    "patch_filters": 4,
    "position_similarity": 4,
    "sample_images": 4,
    "sample_labels": 1,
    "sample_predictions": 1,
    "sample_probabilities": 1,
    "confusion": 2,
}


@dataclass(frozen=True)
class Samples:
    """Test images with the model's predictions: (n, H, W, 3) uint8 and three arrays of (n,)."""

    images: Array
    labels: Array
    predictions: Array
    probabilities: Array


@dataclass(frozen=True)
class Artefacts:
    """Pictures of the model as arrays, from which step and task; None where it was not recorded."""

    step: int | None = None
    task: str = ""
    patch_filters: Array | None = None  # (K, P, P, 3) float32
    position_similarity: Array | None = None  # (gh, gw, gh, gw) float32
    samples: Samples | None = None
    confusion: Array | None = None  # (K, K) int64, rows are the truth


def _read_artefacts(workspace: Store, joined: Iterable[ScoredResult]) -> Artefacts:
    """The artefacts of the newest inspected step; empty when nothing was inspected.

    Raises DamageError when the file is not what its result says, or an array has another shape than promised.
    """
    inspected = [entry for entry in joined if entry.result.key.evaluator == _INSPECT and entry.step is not None]
    if not inspected:
        return Artefacts()
    newest = min(inspected, key=lambda entry: (-(entry.step or 0), entry.result.key.task, entry.result.id))
    promised = newest.result.files.get(ARTEFACTS, "")
    key = file_key(newest.result.id, ARTEFACTS, promised)
    try:
        data = workspace.read(key)
    except FileNotFoundError:
        return Artefacts(newest.step, newest.result.key.task)
    if promised != sha256_hex(data):
        raise DamageError(f"{key} is not what its result lists", "delete the evaluation and evaluate again")
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise DamageError(f"{key} cannot be read: {error}", "delete the evaluation and evaluate again") from None
    return _checked(arrays, key, newest)


def _checked(arrays: dict[str, Array], key: str, newest: ScoredResult) -> Artefacts:
    for name, dimensions in _NUM_DIMENSIONS.items():
        if name in arrays and arrays[name].ndim != dimensions:
            raise DamageError(f"{key}: '{name}' has shape {arrays[name].shape}, {dimensions} dimensions expected")
    filled = {name: array for name, array in arrays.items() if array.size}
    parts = [filled.get(f"sample_{name}") for name in ("images", "labels", "predictions", "probabilities")]
    present = [part for part in parts if part is not None]
    if len({len(part) for part in present}) > 1:
        raise DamageError(f"{key}: the sample arrays differ in length: {[len(part) for part in present]}")
    return Artefacts(
        step=newest.step,
        task=newest.result.key.task,
        patch_filters=_finite(filled.get("patch_filters")),
        position_similarity=_finite(filled.get("position_similarity")),
        samples=Samples(*present) if len(present) == len(parts) else None,
        confusion=filled.get("confusion"),
    )


def _finite(array: Array | None) -> Array | None:
    return None if array is None else np.nan_to_num(np.asarray(array, np.float32), posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class Training:
    """The metrics of all attempts as one history. ``resumed_at``: the first steps of the attempts after the first."""

    rows: tuple[MetricsRow, ...]
    num_attempts: int
    resumed_at: tuple[int, ...]


@dataclass(frozen=True)
class RunData:
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
    joined: tuple[ScoredResult, ...]
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
        left = {entry.step for entry in self.joined if entry.step} & {card.step for card in self.retired}
        return tuple(sorted(left | {card.step for card in self.checkpoints if card.step > 0}))


def collect(workspace: Store, run: str) -> RunData:
    """Read *run* and what belongs to it. Raises InputError when there is no such run."""
    card = read_run_card(workspace, run)
    dataset, note = _dataset_of(workspace, card)
    checkpoints = tuple(list_checkpoint_cards(workspace, run))
    retired = tuple(list_retired_cards(workspace, run))
    joined = join_results((*checkpoints, *retired), list_results(workspace))
    return RunData(
        run=card,
        dataset=dataset,
        dataset_note=note,
        checkpoints=checkpoints,
        retired=retired,
        training=_read_training(workspace, run),
        seconds=_read_seconds(workspace, run),
        joined=joined,
        scores=score_rows(run, joined),
        artefacts=_read_artefacts(workspace, joined),
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


def _read_training(workspace: Store, run: str) -> Training:
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
    key = f"{run_prefix(run)}/seconds.json"
    try:
        tree = json.loads(workspace.read(key))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise DamageError(f"{key} is not valid JSON", "delete it; only the times of the stages are lost") from None
    if not isinstance(tree, dict) or not all(isinstance(value, int | float) for value in tree.values()):
        raise DamageError(f"{key} is not an object of seconds", "delete it; only the times of the stages are lost")
    return {str(stage): float(value) for stage, value in tree.items()}


def images_per_second(collected: RunData) -> float | None:
    """The median over the logged rows; None when nothing was logged."""
    rows = collected.training.rows
    return median(row.images_per_second for row in rows) if rows else None


def pretrain_seconds(collected: RunData) -> float:
    """Wall time of the pretraining stage where it was taken, else the total of the logged rows."""
    return collected.seconds.get("pretrain", sum(row.seconds for row in collected.training.rows))
