"""Runs, their attempts, checkpoints and metrics; and where they stand in a workspace.

::

    runs/<name>/run.json                               create-only
                attempts/0001.json                     create-only: who is trusted to commit is the newest
                metrics/0001/part-00000.jsonl          what attempt 1 measured
                checkpoints/step-00000100/0001/...     what the ranks of attempt 1 wrote
                                          checkpoint.json     the card, last, create-only
                                          model.safetensors
                seconds.json                           wall time of each stage of the chain
"""

from __future__ import annotations

from typing import Any, Literal

from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.records.record import Record, read_record

WEIGHTS = "model.safetensors"


class OrderParameters(Record):
    """What fixes the global order of samples, beside the dataset's digest."""

    seed: int
    partitions: int
    window: int
    batch_size: int


class RunCard(Record):
    """What a run is: fixed at its first attempt, for all attempts."""

    schema_version: Literal[1] = 1
    name: str
    fingerprint: str
    fingerprinted: dict[str, Any]
    recipe: dict[str, Any]
    dataset_name: str
    dataset_digest: str
    order: OrderParameters
    code_version: str

    @property
    def dataset_weights(self) -> dict[str, float]:
        """The datasets by name and their weights: of one alone, 1; of a mixture, in the order of its digest."""
        given = self.recipe.get("dataset")
        return dict(sorted(given.items())) if isinstance(given, dict) else {self.dataset_name: 1.0}


class StoredFile(Record):
    """One file of a checkpoint: its name below the step's directory, its size and its digest."""

    name: str
    num_bytes: int
    sha256: str


class CheckpointCard(Record):
    """A step is a checkpoint if and only if this card is there and every file that it lists is there."""

    schema_version: Literal[1] = 1
    run: str
    step: int
    position: int
    attempt: str
    world_size: int
    zero_stage: int
    dtype: str
    fingerprint: str
    dataset_digest: str
    code_version: str
    files: tuple[StoredFile, ...]
    weights: StoredFile


class MetricsRow(Record):
    """One logged step. ``loss`` and ``grad_norm`` are float.hex(), so that equality means equality."""

    step: int
    position: int
    loss: str
    learning_rate: float
    grad_norm: str
    images_per_second: float
    data_wait_share: float
    seconds: float


def run_prefix(name: str) -> str:
    """Where run *name* stands in a workspace."""
    return f"runs/{name}"


def step_prefix(run: str, step: int) -> str:
    """Where the checkpoint of *step* stands."""
    return f"{run_prefix(run)}/checkpoints/step-{step:08d}"


def checkpoint_card_key(run: str, step: int) -> str:
    """The key of a checkpoint's card."""
    return f"{step_prefix(run, step)}/checkpoint.json"


def read_run_card(workspace: Store, name: str) -> RunCard:
    """The card of run *name*. Raises InputError when there is no such run."""
    try:
        return read_record(RunCard, workspace, f"{run_prefix(name)}/run.json")
    except FileNotFoundError:
        raise InputError(
            f"no run {name!r} in {workspace.uri}", "start one with: vitpipe pretrain recipe.yaml"
        ) from None


def list_checkpoint_cards(workspace: Store, run: str) -> list[CheckpointCard]:
    """The cards of all checkpoints of *run*, by step."""
    prefix = f"{run_prefix(run)}/checkpoints/"
    keys = [info.key for info in workspace.list(prefix) if info.key.endswith("/checkpoint.json")]
    return sorted((read_record(CheckpointCard, workspace, key) for key in keys), key=lambda card: card.step)
