"""What a dataset is made of, known before any of it is made; and whether the one that stands there is made of it."""

from __future__ import annotations

import os
from typing import Any

from pipeline.base.digests import differing_fields, fingerprint
from pipeline.base.errors import ConflictError, MismatchError
from pipeline.base.place import here, is_gone
from pipeline.base.store import Store
from pipeline.records.corpus import Corpus
from pipeline.records.dataset import CARD, WORK, DatasetCard
from pipeline.records.record import Record, read_record
from pipeline.shard.plan import listing_digest
from pipeline.shard.recipe import ShardRecipe

CLAIM = f"{WORK}/claim.json"
_FORMAT = 3  # raise it when equal input and recipe would give other bytes than before


class Identity(Record):
    """``fingerprint`` is over everything that fixes a dataset's bytes, given the images themselves."""

    recipe: dict[str, Any]
    listing_digest: str
    fingerprint: str


class Claim(Identity):
    """What is being made, and the process that began with it last: where its number means something, and the number."""

    place: str = ""
    pid: int = 0


def identity_of(corpus: Corpus, recipe: ShardRecipe, shaping: dict[str, Any]) -> Identity:
    """Of the *corpus* as listed, the recipe, and *shaping*: what is done to the corpus before it is sharded."""
    settings = recipe.model_dump(mode="json") | shaping
    digest = fingerprint([listing_digest(corpus.entries, corpus.classes), corpus.rejects.num_rows])
    made_of = fingerprint([_FORMAT, settings, digest, corpus.class_names])
    return Identity(recipe=settings, listing_digest=digest, fingerprint=made_of)


def is_of_one_piece(card: DatasetCard) -> bool:
    """True when the card's fingerprint is that of the recipe, listing and class names beside it."""
    return card.fingerprint == fingerprint([_FORMAT, card.recipe, card.listing_digest, card.class_names])


def find_existing(target: Store, identity: Identity) -> DatasetCard | None:
    """The card that stands at *target*, or None. Raises MismatchError when it was made from something else."""
    try:
        card = read_record(DatasetCard, target, CARD)
    except FileNotFoundError:
        return None
    if card.fingerprint == identity.fingerprint:
        return card
    fields = _differences(identity, card.recipe, card.listing_digest)
    raise MismatchError(
        f"{target.uri} exists and was made from something else: {'; '.join(fields)}", "give another --name"
    )


def claim(target: Store, identity: Identity) -> None:
    """Say, create-only, what is being made at *target*, so that two makings never write over each other.

    An attempt that died leaves its claim to the next one of the same making, which takes it over. Raises ConflictError
    when the claim that stands there is of another making.
    """
    mine = Claim(**identity.model_dump(), place=here(), pid=os.getpid()).to_json()
    if target.put_if_absent(CLAIM, mine):
        return
    theirs = read_record(Claim, target, CLAIM)
    if theirs.fingerprint == identity.fingerprint and is_gone(theirs.place, theirs.pid):
        target.put(CLAIM, mine)
    if theirs.fingerprint != identity.fingerprint:
        fields = _differences(identity, theirs.recipe, theirs.listing_digest)
        raise ConflictError(
            f"{target.uri} is being made from something else, or was left unfinished: {'; '.join(fields)}",
            "give another --name, or let that end; if nobody makes it any more: vitpipe gc",
        )


def _differences(identity: Identity, recipe: dict[str, Any], listing_digest: str) -> list[str]:
    ours = {"recipe": identity.recipe, "listing_digest": identity.listing_digest}
    theirs = {"recipe": recipe, "listing_digest": listing_digest}
    return differing_fields(ours, theirs) or ["format: made by another release"]
