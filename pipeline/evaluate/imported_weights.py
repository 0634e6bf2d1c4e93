"""Weights from anywhere, copied into the workspace under a name.

Every worker reads them there, and results stay reproducible from what is stored beside them. ``records/imported.py``
draws the files.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.open import normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import Store, Stores
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.weights import ModelDescription, unpack_model
from pipeline.records.imported import (
    ImportedCard,
    imported_card_key,
    imported_file,
    list_imported_cards,
    read_imported_card,
)
from pipeline.records.run import WEIGHTS, run_prefix

_DIGEST_DIGITS = 12  # of a digest, in the default name of weights


@dataclass(frozen=True)
class Weights:
    """Weights in memory, and the card that they will have in the workspace."""

    data: bytes
    card: ImportedCard


def read_weights(workspace: Store, uri: str, name: str = "", stores: Stores | None = None) -> Weights:
    """Read all of the weights at *uri*, a ``model.safetensors`` or a folder that holds one, for *name* in *workspace*.

    Without *name* it is the one that they have there already, or ``imported-`` and the first digits of their digest.
    Stores nothing. Raises InputError for anything else, and for a name that is a run's or other weights'.
    """
    data = _read(workspace, uri, stores)
    try:
        _, description = unpack_model(data, uri)
    except DamageError as error:
        raise InputError(error.message, "bring others' weights in first: vitpipe import FILE --out DIR") from None
    transform = _transform_of(description, uri)
    digest = sha256_hex(data)
    card = ImportedCard(
        name=name or _default_name(workspace, digest),
        source=normalise_uri(uri),
        weights=imported_file(digest, len(data)),
        transform=transform.model_dump(mode="json"),
    )
    _check_name(workspace, card)
    return Weights(data, card)


def store_weights(workspace: Store, weights: Weights) -> None:
    """Store them in *workspace*, the card last. Raises InputError when the name was given to others meanwhile."""
    card = weights.card
    info = workspace.head(card.weights_key)
    if info is None or info.num_bytes != card.weights.num_bytes:
        workspace.put(card.weights_key, weights.data)  # named by content: whoever else puts it puts the same
    if not workspace.put_if_absent(imported_card_key(card.name), card.to_json()):
        _check_name(workspace, card)


def _read(workspace: Store, uri: str, stores: Stores | None) -> bytes:
    normalised = normalise_uri(uri)
    for folder, name in ((normalised, WEIGHTS), split_uri(normalised)):
        store = open_store(folder, stores)
        if store.head(name) is not None:
            return store.read(name)
    run = uri.partition("@")[0]
    if "/" not in run and workspace.head(f"{run_prefix(run)}/run.json") is not None:
        raise InputError(
            f"{run!r} is a run of {workspace.uri}, no file", f"leave --weights out: vitpipe evaluate {run}"
        )
    raise InputError(
        f"there are no weights at {uri}", f"name a {WEIGHTS}, or a folder with one, as vitpipe import writes it"
    )


def _transform_of(description: ModelDescription, uri: str) -> EvaluationTransform:
    try:
        transform = EvaluationTransform.model_validate(description.transform or {"size": None})
    except ValidationError:
        raise InputError(
            f"{uri} does not tell how its input is made (transform)", "write it anew with vitpipe import"
        ) from None
    size = description.architecture.image_size
    if transform.size != size:
        raise InputError(f"{uri}: its transform makes {transform.size} px, its network takes {size} px")
    return transform


def _default_name(workspace: Store, digest: str) -> str:
    names = [card.name for card in list_imported_cards(workspace) if card.weights.sha256 == digest]
    return names[0] if names else f"imported-{digest[:_DIGEST_DIGITS]}"


def _check_name(workspace: Store, card: ImportedCard) -> None:
    if workspace.head(f"{run_prefix(card.name)}/run.json") is not None:
        raise InputError(f"{card.name!r} is the name of a run of {workspace.uri}", "give another --name")
    existing = read_imported_card(workspace, card.name)
    if existing is not None and existing.weights != card.weights:
        raise InputError(f"{card.name!r} is the name of other weights, from {existing.source}", "give another --name")
