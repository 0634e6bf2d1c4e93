"""Weights that were imported into a workspace, to be evaluated without a run; their scores are listed under a name.

::

    imported/<digest>/model.safetensors   the weights, under the sha256 of the file
    imported/names/<name>.json            the card of a name, last, create-only

Evaluations know weights by digest alone, so two names of the same digest share their results. ``Score.run`` is the name
of a run or of imported weights; ``Score.step`` of these is null.
"""

from __future__ import annotations

from typing import Any, Literal

from pipeline.base.store.protocol import Store
from pipeline.records.record import Record, parse_record, read_record
from pipeline.records.run import WEIGHTS, StoredFile

IMPORTED = "imported/"
_NAMES = f"{IMPORTED}names/"


class ImportedCard(Record):
    """The weights called *name*. ``source``: where they were read; ``transform``: how their input is made."""

    schema_version: Literal[1] = 1
    name: str
    source: str
    weights: StoredFile  # its name is below ``imported/``
    transform: dict[str, Any]

    @property
    def weights_key(self) -> str:
        """The key of the weights."""
        return f"{IMPORTED}{self.weights.name}"


def imported_file(digest: str, num_bytes: int) -> StoredFile:
    """The file of weights with this digest, named below ``imported/``."""
    return StoredFile(name=f"{digest}/{WEIGHTS}", num_bytes=num_bytes, sha256=digest)


def imported_card_key(name: str) -> str:
    """The key of the card of *name*."""
    return f"{_NAMES}{name}.json"


def read_imported_card(workspace: Store, name: str) -> ImportedCard | None:
    """The card of *name*; None when no imported weights are called so. Raises DamageError."""
    try:
        return read_record(ImportedCard, workspace, imported_card_key(name))
    except FileNotFoundError:
        return None


def list_imported_cards(workspace: Store) -> list[ImportedCard]:
    """All of them, by name. Raises DamageError."""
    keys = sorted(info.key for info in workspace.list(_NAMES))
    return [parse_record(ImportedCard, workspace.read(key), key) for key in keys]
