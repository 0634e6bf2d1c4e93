"""Weights by the names that people give them: ``RUN``, ``RUN@STEP``, ``RUN@last``, the name of imported weights, or how
their digest begins."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.base.errors import InputError
from pipeline.base.store import Store
from pipeline.records.imported import read_imported_card
from pipeline.records.run import (
    list_checkpoint_cards,
    list_retired_cards,
    parse_reference,
    read_run_card,
    run_prefix,
)
from pipeline.records.score import PIXELS, EvaluationResult

LAST = "last"
_DIGEST = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class NamedWeights:
    """The digest of the weights, and what to call them."""

    name: str
    digest: str


def find_weights(workspace: Store, text: str, results: Iterable[EvaluationResult]) -> NamedWeights:
    """What *text* names. ``RUN`` is ``RUN@last``, its newest checkpoint; steps that retention removed count too.

    A digest is looked for among those that *results* are of. Raises InputError, naming what there is.
    """
    run, at, step = text.rpartition("@")
    if at:
        return _of_run(workspace, run, LAST if step == LAST else str(parse_reference(text)[1]))
    if workspace.head(f"{run_prefix(text)}/run.json") is not None:
        return _of_run(workspace, text, LAST)
    card = read_imported_card(workspace, text)
    if card is not None:
        return NamedWeights(text, card.weights.sha256)
    if not _DIGEST.fullmatch(text):
        return _of_run(workspace, text, LAST)  # says that there is no such run
    digests = {result.key.weights_digest for result in results} - {PIXELS}
    found = sorted(digest for digest in digests if digest.startswith(text))
    if len(found) == 1:
        return NamedWeights(f"weights {found[0][:12]}", found[0])
    if found:
        raise InputError(f"{text!r} begins {len(found)} digests: {', '.join(one[:12] for one in found)}", "give more")
    raise InputError(f"{text!r} is no run, and no evaluated weights have a digest that begins so")


def _of_run(workspace: Store, run: str, step: str) -> NamedWeights:
    read_run_card(workspace, run)
    cards = {card.step: card for card in list_retired_cards(workspace, run)}
    cards |= {card.step: card for card in list_checkpoint_cards(workspace, run)}
    if step == LAST:
        trained = [number for number in cards if number > 0]
        if not trained:
            raise InputError(f"run {run!r} has no checkpoint of a trained model yet")
        step = str(max(trained))
    if int(step) not in cards:
        there = ", ".join(str(number) for number in sorted(cards)) or "none"
        raise InputError(f"no checkpoint {run}@{step} in {workspace.uri}", f"its steps: {there}, or write {run}@{LAST}")
    return NamedWeights(f"{run}@{step}", cards[int(step)].weights.sha256)
