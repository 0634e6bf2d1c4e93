"""Runs, their attempts, checkpoints and metrics: records and keys.

::

    runs/<name>/run.json                               create-only
                attempts/0001.json                     create-only: only the newest attempt may commit
                extend-00002000.json                   create-only: the run has 2,000 steps now
                metrics/0001/part-00000000.jsonl       what attempt 1 measured; tensorboard/0001/ has it as event files
                logs/0001/rank-0.log                   the logs of its ranks; driver/: those of their driver
                checkpoints/step-00000100/0001/...            what attempt 1 wrote, model.safetensors among it
                                          checkpoint.json     the card, last, create-only
                                          retired.json        the card of a step that retention removed
                pins/<owner>.json                      leases on steps: they are not removed
                failures/<token>.json                  why a rank gave up, until its driver has shown it
                seconds.json                           wall time of each stage of the chain
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from pipeline.base.digests import fingerprint as fingerprint_of
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.protocol import Store
from pipeline.records.record import Record, parse_record, read_record

WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "ema.safetensors"
CARD = "checkpoint.json"
RETIRED = "retired.json"


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
    parent: str | None = None  # RUN@STEP that this run was forked from
    init_sha256: str = ""  # of the weights that the recipe's init names; "" where it has none

    @property
    def dataset_weights(self) -> dict[str, float]:
        """The datasets by name and their weights: of one alone, 1; of a mixture, in the order of its digest."""
        weights = self.recipe.get("dataset")
        return dict(sorted(weights.items())) if isinstance(weights, dict) else {self.dataset_name: 1.0}


class Extension(Record):
    """*run* has *steps* steps; when it was extended it had *before*, and its newest checkpoint was of *done*."""

    schema_version: Literal[1] = 1
    run: str
    steps: int
    before: int
    done: int


class StoredFile(Record):
    """One file of a checkpoint: its name below the step's directory, its size and its digest."""

    name: str
    num_bytes: int
    sha256: str


class CheckpointCard(Record):
    """A step is a checkpoint if and only if this card is there and every file that it lists is there.

    ``world_size``, ``zero_stage`` and ``dtype`` are those it was written with; any others can resume it. ``digest`` is
    over the other fields, so that a card with a changed byte is known to be damaged; left out, it is filled in.
    """

    schema_version: Literal[2] = 2
    run: str
    step: int
    position: int
    updates: int
    attempt: str
    world_size: int
    zero_stage: int
    dtype: str
    fingerprint: str
    dataset_digest: str
    code_version: str
    parent: str | None = None  # RUN@STEP that the run was forked from
    files: tuple[StoredFile, ...]
    weights: StoredFile
    ema_weights: StoredFile | None = None
    digest: str = ""

    @model_validator(mode="after")
    def _sealed(self) -> Self:
        expected = fingerprint_of(self.model_dump(mode="json", exclude={"digest"}))
        if not self.digest:
            object.__setattr__(self, "digest", expected)  # frozen for everybody else
        elif self.digest != expected:
            raise ValueError("it is not the digest of the other fields")
        return self

    @property
    def every_file(self) -> tuple[StoredFile, ...]:
        """The files that have to be there."""
        return (*self.files, self.weights, *((self.ema_weights,) if self.ema_weights else ()))


class MetricsRow(Record):
    """One logged step. ``loss`` and ``grad_norm`` are float.hex(), so that equality means equality."""

    step: int
    position: int
    loss: str
    learning_rate: float
    grad_norm: str
    images_per_second: float
    data_wait_share: float  # of the rank that waited longest
    seconds: float
    mfu: float | None = None  # model FLOPs utilisation, against the measured peak of all ranks
    rank_skew: float = 0.0  # by how much the slowest rank's forward passes took longer than the fastest one's
    resident_bytes: int = 0  # of the rank that has most
    skipped: int = 0  # updates left out so far in this attempt, since they were not finite


def run_prefix(name: str) -> str:
    """The prefix of the keys of run *name*."""
    return f"runs/{name}"


def step_prefix(run: str, step: int) -> str:
    """The prefix of the keys of the checkpoint of *step*."""
    return f"{run_prefix(run)}/checkpoints/step-{step:08d}"


def checkpoint_card_key(run: str, step: int) -> str:
    """The key of a checkpoint's card."""
    return f"{step_prefix(run, step)}/{CARD}"


def parse_reference(text: str) -> tuple[str, int]:
    """("run", 100) of ``run@100``. Raises InputError for anything else."""
    run, at, step = text.rpartition("@")
    if not (run and at and step.isascii() and step.isdigit()):
        raise InputError(f"{text!r} names no checkpoint", "write RUN@STEP, like first@1000")
    return run, int(step)


def read_run_card(workspace: Store, name: str) -> RunCard:
    """The card of run *name*. Raises InputError when there is no such run."""
    try:
        return read_record(RunCard, workspace, f"{run_prefix(name)}/run.json")
    except FileNotFoundError:
        raise InputError(
            f"no run {name!r} in {workspace.uri}", "start one with: vitpipe pretrain recipe.yaml"
        ) from None


def extended(workspace: Store, run: RunCard) -> int:
    """How many steps *run* has: those of its recipe, or of its longest extension."""
    prefix = f"{run_prefix(run.name)}/extend-"
    lengths = [read_record(Extension, workspace, info.key).steps for info in workspace.list(prefix)]
    return max([int(run.recipe["steps"]), *lengths])


def extension_key(run: str, steps: int) -> str:
    """The key of the extension of *run* to *steps* steps."""
    return f"{run_prefix(run)}/extend-{steps:08d}.json"


def parse_checkpoint_card(data: bytes, run: str, step: int, source_name: str) -> CheckpointCard:
    """The card in *data*, read from *source_name*. Raises DamageError for a broken one, or one of another step."""
    card = parse_record(CheckpointCard, data, source_name)
    if (card.run, card.step) != (run, step):
        raise DamageError(
            f"{source_name} is the card of {card.run}@{card.step}, not of {run}@{step}",
            "vitpipe pretrain sets it aside and goes on from the one before",
        )
    return card


def _read_card(workspace: Store, run: str, step: int, name: str = CARD) -> CheckpointCard:
    key = f"{step_prefix(run, step)}/{name}"
    return parse_checkpoint_card(workspace.read(key), run, step, f"{workspace.uri}/{key}")


def read_checkpoint_card(workspace: Store, run: str, step: int) -> CheckpointCard:
    """The card of one checkpoint. Raises InputError, which names the steps that there are, when there is none.

    Raises DamageError for a card that is broken or of another checkpoint; so do those that list cards.
    """
    try:
        return _read_card(workspace, run, step)
    except FileNotFoundError:
        steps = ", ".join(str(known) for known in list_steps(workspace, run)) or "none"
        raise InputError(f"no checkpoint {run}@{step} in {workspace.uri}", f"its steps: {steps}") from None


def list_runs(workspace: Store) -> list[str]:
    """The names of all runs that have a card."""
    keys = (info.key.removeprefix("runs/").split("/") for info in workspace.list("runs/"))
    return sorted(key[0] for key in keys if key[1:] == ["run.json"])


def list_steps(workspace: Store, run: str) -> list[int]:
    """The steps of *run* that have a card, in order."""
    return sorted(_steps_with(workspace, run, CARD))


def list_checkpoint_cards(workspace: Store, run: str) -> list[CheckpointCard]:
    """The cards of all checkpoints of *run*, by step."""
    return [_read_card(workspace, run, step) for step in list_steps(workspace, run)]


def list_retired_cards(workspace: Store, run: str) -> list[CheckpointCard]:
    """The cards of the steps that retention removed, by step: their scores are still of this run."""
    gone = _steps_with(workspace, run, RETIRED) - _steps_with(workspace, run, CARD)
    return [_read_card(workspace, run, step, RETIRED) for step in sorted(gone)]


def _steps_with(workspace: Store, run: str, name: str) -> set[int]:
    prefix = f"{run_prefix(run)}/checkpoints/step-"
    parts = (info.key.removeprefix(prefix).split("/") for info in workspace.list(prefix))
    return {int(part[0]) for part in parts if len(part) == 2 and part[1] == name and part[0].isdigit()}
