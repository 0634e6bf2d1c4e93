"""Find the newest checkpoint that is whole, fetch what this rank needs of it, and verify every byte.

Its files hold pickles. They are loaded because they come from the own run, and only after their digests matched.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.base.collective import Collective
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, MismatchError
from pipeline.base.store import Store
from pipeline.checkpoints.layout import files_of_rank
from pipeline.checkpoints.save import Saving
from pipeline.records.record import parse_record
from pipeline.records.run import CheckpointCard, StoredFile, run_prefix, step_prefix

_log = logging.getLogger(__name__)


def resume_newest(saving: Saving, collective: Collective, folder: Path) -> CheckpointCard | None:
    """Put the newest whole checkpoint's files into *folder*, as DeepSpeed wants them; None when there is none.

    A damaged one is named, its card removed, and the one before it is taken. Every rank has to call it.
    """
    for step in sorted(collective.broadcast(list_steps(saving.workspace, saving.run)), reverse=True):
        problem, card = _try(saving, collective, step, folder)
        problems = [found for found in collective.gather(problem) if found]
        if not problems and card is not None:
            return card
        if collective.world.is_first:
            _log.warning("checkpoint of step %d of run %s is left out: %s", step, saving.run, "; ".join(problems))
            saving.workspace.delete(f"{step_prefix(saving.run, step)}/checkpoint.json")
        collective.broadcast(None)
    return None


def list_steps(workspace: Store, run: str) -> list[int]:
    """The steps that have a card."""
    prefix = f"{run_prefix(run)}/checkpoints/step-"
    keys = [info.key for info in workspace.list(prefix) if info.key.endswith("/checkpoint.json")]
    return sorted(int(key.removeprefix(prefix).partition("/")[0]) for key in keys)


def check_whole(workspace: Store, card: CheckpointCard) -> str | None:
    """The first thing that is missing or has another size than the card says; looks at no content."""
    for file in (*card.files, card.weights):
        info = workspace.head(f"{step_prefix(card.run, card.step)}/{file.name}")
        if info is None:
            return f"{file.name} is missing"
        if info.num_bytes != file.num_bytes:
            return f"{file.name} has {info.num_bytes} bytes, the card says {file.num_bytes}"
    return None


def _try(saving: Saving, collective: Collective, step: int, folder: Path) -> tuple[str | None, CheckpointCard | None]:
    prefix = step_prefix(saving.run, step)
    try:
        data = saving.workspace.read(f"{prefix}/checkpoint.json")
        card = parse_record(CheckpointCard, data, f"{prefix}/checkpoint.json")
        problem = check_whole(saving.workspace, card)
        if problem:
            return problem, None
        _check_honourable(saving, collective, card)
        _fetch(saving, collective, card, prefix, folder)
    except (DamageError, FileNotFoundError) as error:
        return str(error), None
    return None, card


def _check_honourable(saving: Saving, collective: Collective, card: CheckpointCard) -> None:
    """Refuse what cannot be resumed exactly, naming the difference."""
    ours = {
        "fingerprint": saving.fingerprint,
        "dataset_digest": saving.dataset_digest,
        "zero_stage": saving.zero_stage,
        "dtype": saving.dtype,
        "world_size": collective.world.size,
    }
    theirs = card.model_dump()
    fields = [f"{name}: {theirs[name]} -> {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if fields:
        raise MismatchError(f"checkpoint of step {card.step} cannot be resumed: {'; '.join(fields)}")


def _fetch(saving: Saving, collective: Collective, card: CheckpointCard, prefix: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    world = collective.world
    needed = files_of_rank(world.rank, world.size, saving.zero_stage, saving.dtype)
    for file in card.files:
        name = file.name.rpartition("/")[2]
        if name in needed:
            (folder / name).write_bytes(_verified(saving.workspace, prefix, file))
        else:
            (folder / name).touch()  # DeepSpeed counts the files of all ranks, but reads its own only


def _verified(workspace: Store, prefix: str, file: StoredFile) -> bytes:
    data = workspace.read(f"{prefix}/{file.name}")
    if sha256_hex(data) != file.sha256:
        raise DamageError(f"{file.name}: its bytes are not those that the card names")
    return data
