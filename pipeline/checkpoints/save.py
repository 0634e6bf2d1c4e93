"""Save a checkpoint: each rank puts its own files, rank 0 compares them with what is expected and writes the card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.base.collective import Collective
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import ConflictError, FailedError
from pipeline.base.store import Store
from pipeline.checkpoints.attempts import check_newest
from pipeline.checkpoints.layout import expected_files
from pipeline.records.record import read_record
from pipeline.records.run import WEIGHTS, CheckpointCard, StoredFile, checkpoint_card_key, step_prefix


@dataclass(frozen=True)
class Saving:
    """What all checkpoints of one attempt share."""

    workspace: Store
    run: str
    attempt: str
    zero_stage: int
    dtype: str
    fingerprint: str
    dataset_digest: str
    code_version: str


def save_checkpoint(
    saving: Saving, collective: Collective, step: int, position: int, folder: Path, weights: bytes | None
) -> None:
    """Store what this rank wrote into *folder*; rank 0 passes the bytes of model.safetensors too.

    Every rank has to call it. The card appears when all files are stored, or not at all.
    """
    prefix = step_prefix(saving.run, step)
    ours = [_put(saving, prefix, path) for path in sorted(folder.rglob("*.pt"))]
    gathered = collective.gather(ours)
    if collective.world.is_first:
        if weights is None:
            raise ValueError("rank 0 has to bring the weights")
        files = tuple(sorted((file for rank in gathered for file in rank), key=lambda file: file.name))
        _commit(saving, collective, step, position, files, weights)
    collective.broadcast(None)  # no rank goes on before the card is there


def _put(saving: Saving, prefix: str, path: Path) -> StoredFile:
    data = path.read_bytes()
    name = f"{saving.attempt}/{path.name}"
    saving.workspace.put(f"{prefix}/{name}", data)
    return StoredFile(name=name, num_bytes=len(data), sha256=sha256_hex(data))


def _commit(
    saving: Saving, collective: Collective, step: int, position: int, files: tuple[StoredFile, ...], weights: bytes
) -> None:
    found = {file.name.rpartition("/")[2] for file in files}
    expected = expected_files(collective.world.size, saving.zero_stage, saving.dtype)
    if found != expected:
        raise FailedError(f"checkpoint of step {step}: wrote {sorted(found)}, expected {sorted(expected)}")
    check_newest(saving.workspace, saving.run, saving.attempt)
    saving.workspace.put(f"{step_prefix(saving.run, step)}/{WEIGHTS}", weights)
    card = CheckpointCard(
        run=saving.run,
        step=step,
        position=position,
        attempt=saving.attempt,
        world_size=collective.world.size,
        zero_stage=saving.zero_stage,
        dtype=saving.dtype,
        fingerprint=saving.fingerprint,
        dataset_digest=saving.dataset_digest,
        code_version=saving.code_version,
        files=files,
        weights=StoredFile(name=WEIGHTS, num_bytes=len(weights), sha256=sha256_hex(weights)),
    )
    key = checkpoint_card_key(saving.run, step)
    if not saving.workspace.put_if_absent(key, card.to_json()):
        theirs = read_record(CheckpointCard, saving.workspace, key)
        raise ConflictError(f"{key} was written by attempt {theirs.attempt} meanwhile")
