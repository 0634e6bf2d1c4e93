"""The stage: corpus + recipe -> dataset card. Give it again and it goes on where it stopped, to the same bytes."""

from __future__ import annotations

from typing import Any

from pipeline.base.digests import differing_fields, fingerprint
from pipeline.base.errors import FailedError, InputError, MismatchError, TooManyRejectsError
from pipeline.base.progress import Progress
from pipeline.base.store import Store
from pipeline.records.corpus import Corpus, Reject
from pipeline.records.dataset import CARD, DatasetCard, ShardEntry
from pipeline.records.record import read_record
from pipeline.shard.commit import make_card, publish, put_tables, statistics_of
from pipeline.shard.plan import listing_digest, plan_shards
from pipeline.shard.recipe import ShardRecipe
from pipeline.shard.spread import run_plan

_FORMAT = 1  # raise it when equal input and recipe would give other bytes than before


def build_dataset(
    corpus: Corpus, recipe: ShardRecipe, target: Store, name: str, *, progress: Progress, num_cpus: float = 1
) -> DatasetCard:
    """Shard *corpus* into *target* and return the card, which is written last.

    Raises MismatchError when a dataset made from something else stands there, TooManyRejectsError when the
    recipe's limit is passed, InputError when there is nothing to shard.
    """
    made_of = _made_of(corpus, recipe)
    num_input = corpus.listing.num_rows + len(corpus.rejects)
    if not num_input:
        raise InputError("the corpus is empty", "nothing to shard")
    existing = _existing(target, made_of)
    if existing is not None:
        progress.say(f"dataset {name} is there already: {existing.num_samples} samples, digest {existing.digest[:12]}")
        return existing
    shards, rejects = _write(corpus, recipe, target, made_of, progress, num_cpus)
    try:
        _check_rejects(rejects, num_input, recipe)
    except TooManyRejectsError:
        _discard(target)
        raise
    card = make_card(
        name=name,
        class_names=corpus.class_names,
        num_input=num_input,
        num_rejected=len(rejects),
        shards=shards,
        statistics=statistics_of(target, shards, len(corpus.class_names)),
        recipe=made_of["recipe"],
        listing_digest=made_of["listing_digest"],
        format_fingerprint=fingerprint(made_of),
        tables=put_tables(target, shards, rejects),
    )
    if card.num_input != card.num_samples + card.num_rejected + card.num_duplicates:
        raise FailedError(f"{name}: {num_input} images came in, {card.num_samples} + {card.num_rejected} went out")
    return publish(target, card)


def _made_of(corpus: Corpus, recipe: ShardRecipe) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "recipe": recipe.model_dump(mode="json"),
        "listing_digest": listing_digest(corpus.listing, corpus.class_names),
        "rejected_while_listing": len(corpus.rejects),
    }


def _existing(target: Store, made_of: dict[str, Any]) -> DatasetCard | None:
    try:
        card = read_record(DatasetCard, target, CARD)
    except FileNotFoundError:
        return None
    if card.fingerprint == fingerprint(made_of):
        return card
    theirs = {"recipe": card.recipe, "listing_digest": card.listing_digest}
    ours = {"recipe": made_of["recipe"], "listing_digest": made_of["listing_digest"]}
    fields = differing_fields(ours, theirs) or ["format: made by another release"]
    raise MismatchError(
        f"{target.uri} exists and was made from something else: {'; '.join(fields)}", "give another --name"
    )


def _write(
    corpus: Corpus, recipe: ShardRecipe, target: Store, made_of: dict[str, Any], progress: Progress, num_cpus: float
) -> tuple[list[ShardEntry], list[Reject]]:
    rejects = list(corpus.rejects)
    entries: dict[int, ShardEntry] = {}
    if corpus.listing.num_rows:
        plan = list(plan_shards(corpus.listing, recipe))
        progress.start(f"shard {target.uri.rpartition('/')[2]}", len(plan))
        for written in run_plan(iter(plan), corpus.reader, target, fingerprint(made_of), num_cpus):
            rejects += written.rejects
            if written.entry is not None:
                entries[written.number] = written.entry
            progress.advance(note=f"{len(rejects)} rejected" if rejects else "")
        progress.finish()
    return [entries[number] for number in sorted(entries)], rejects


def _check_rejects(rejects: list[Reject], num_input: int, recipe: ShardRecipe) -> None:
    if not rejects:
        return
    reasons = sorted({reject.reason for reject in rejects})
    first = min(rejects, key=lambda reject: reject.origin)
    told = f"{len(rejects)} of {num_input} images rejected ({', '.join(reasons)}; first: {first.origin})"
    if len(rejects) == num_input:
        raise TooManyRejectsError(f"no image of the corpus can be used: {told}", "check the source")
    if len(rejects) > max(recipe.tolerated_rejects, recipe.max_reject_ratio * num_input):
        raise TooManyRejectsError(told, f"mend the corpus, or raise max_reject_ratio ({recipe.max_reject_ratio})")


def _discard(target: Store) -> None:
    """Remove what was written of a dataset that will get no card, so that nothing of it is taken up later."""
    for info in target.list():
        target.delete(info.key)
