"""What a dataset is made of, known before any of it is made; and whether the one that stands there is made of it."""

from __future__ import annotations

from typing import Any

from pipeline.base.digests import differing_fields, fingerprint
from pipeline.base.errors import MismatchError
from pipeline.base.store import Store
from pipeline.records.corpus import Corpus
from pipeline.records.dataset import CARD, DatasetCard
from pipeline.records.record import Record, read_record
from pipeline.shard.plan import listing_digest
from pipeline.shard.recipe import ShardRecipe

_FORMAT = 2  # raise it when equal input and recipe would give other bytes than before


class Identity(Record):
    """``fingerprint`` is over everything that fixes a dataset's bytes, given the images themselves."""

    recipe: dict[str, Any]
    listing_digest: str
    fingerprint: str


def identity_of(corpus: Corpus, recipe: ShardRecipe, shaping: dict[str, Any]) -> Identity:
    """Of the *corpus* as listed, the recipe, and *shaping*: what is done to the corpus before it is sharded."""
    settings = recipe.model_dump(mode="json") | shaping
    digest = listing_digest(corpus.entries, corpus.classes)
    made_of = fingerprint([_FORMAT, settings, digest, corpus.rejects.num_rows])
    return Identity(recipe=settings, listing_digest=digest, fingerprint=made_of)


def find_existing(target: Store, identity: Identity) -> DatasetCard | None:
    """The card that stands at *target*, or None. Raises MismatchError when it was made from something else."""
    try:
        card = read_record(DatasetCard, target, CARD)
    except FileNotFoundError:
        return None
    if card.fingerprint == identity.fingerprint:
        return card
    ours = {"recipe": identity.recipe, "listing_digest": identity.listing_digest}
    theirs = {"recipe": card.recipe, "listing_digest": card.listing_digest}
    fields = differing_fields(ours, theirs) or ["format: made by another release"]
    raise MismatchError(
        f"{target.uri} exists and was made from something else: {'; '.join(fields)}", "give another --name"
    )
