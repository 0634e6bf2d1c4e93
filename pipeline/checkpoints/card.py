"""Attempts of a run, and whether a checkpoint is complete, readable, damaged.

Attempts are numbered leases (``base/lease.py``): a number is taken create-only, and only the newest attempt may commit
a checkpoint.
"""

from __future__ import annotations

import json

from pydantic import ValidationError

from pipeline.base.digests import canonical_json
from pipeline.base.errors import MismatchError, SupersededError
from pipeline.base.lease import list_numbers, take_next
from pipeline.base.store.protocol import Store
from pipeline.records.run import CheckpointCard, checkpoint_card_key, parse_checkpoint_card, run_prefix, step_prefix


def take_attempt(workspace: Store, run: str) -> str:
    """Take the next number, like ``"0003"``."""
    return take_next(workspace, _attempts_prefix(run), b"{}\n")


def list_attempts(workspace: Store, run: str) -> list[str]:
    """All numbers taken so far, in order."""
    return list_numbers(workspace, _attempts_prefix(run))


def check_newest(workspace: Store, run: str, attempt: str) -> None:
    """Raise SupersededError when a newer attempt of the run has begun."""
    newest = list_attempts(workspace, run)[-1]
    if newest != attempt:
        raise SupersededError(f"attempt {attempt} of run {run} was superseded by attempt {newest}; it commits nothing")


def _attempts_prefix(run: str) -> str:
    return f"{run_prefix(run)}/attempts/"


def quarantine(workspace: Store, run: str, step: int, attempt: str, problem: str) -> None:
    """Write ``damaged-<attempt>.json`` (the problem, and the card's own text), then remove the card.

    In this order, so that whatever dies in between leaves a card that the next attempt finds damaged again. A card is
    never changed and never replaced: it is removed, and the step is no checkpoint until an attempt saves it anew, in a
    folder of its own. The files stay as evidence until ``vitpipe gc``. *attempt*, which
    found the damage, has to be the newest.
    """
    key = checkpoint_card_key(run, step)
    try:
        text = workspace.read(key).decode(errors="backslashreplace")
    except FileNotFoundError:
        return
    evidence = canonical_json({"found_by": attempt, "problem": problem, "card": text})
    workspace.put_if_absent(f"{step_prefix(run, step)}/damaged-{attempt}.json", evidence.encode())
    workspace.delete(key)


def check_complete(workspace: Store, card: CheckpointCard) -> str | None:
    """The first thing that is missing or has another size than the card says; looks at no content."""
    prefix = f"{step_prefix(card.run, card.step)}/"
    sizes = {info.key.removeprefix(prefix): info.num_bytes for info in workspace.list(prefix)}
    for file in card.every_file:
        if file.name not in sizes:
            return f"{file.name} is missing"
        if sizes[file.name] != file.num_bytes:
            return f"{file.name} has {sizes[file.name]} bytes, the card says {file.num_bytes}"
    return None


def read_resumable(workspace: Store, run: str, step: int) -> CheckpointCard:
    """The card. Raises DamageError for a broken one or another step's, MismatchError for another release's."""
    key = checkpoint_card_key(run, step)
    data = workspace.read(key)
    current = CheckpointCard.model_fields["schema_version"].default
    version = _version_of(data, current)
    if version != current:
        raise MismatchError(
            f"{workspace.uri}/{key} has schema_version {version}, this vitpipe resumes {current}",
            "go on with the release that wrote it, or start another run from its model.safetensors",
        )
    return parse_checkpoint_card(data, run, step, f"{workspace.uri}/{key}")


def _version_of(data: bytes, current: int) -> int:
    """The schema version in a card; *current* where it is none, or where it makes the only difference: a damage."""
    try:
        tree = json.loads(data)
        version: int = tree["schema_version"]
        if not isinstance(version, int):
            return current
        sealed = CheckpointCard.model_validate(tree | {"schema_version": current})
    except ValidationError:
        return version
    except (ValueError, KeyError, TypeError):
        return current
    return current if sealed.digest == tree.get("digest") else version
