"""What is found damaged is set aside, so that its step can be saved again and what was there can be looked at."""

from __future__ import annotations

from pipeline.base.digests import canonical_json
from pipeline.base.store import Store
from pipeline.records.run import checkpoint_card_key, step_prefix


def set_aside(workspace: Store, run: str, step: int, attempt: str, problem: str) -> None:
    """Write ``damaged-<attempt>.json`` (the problem, and the card's own text), then remove the card.

    In this order, so that whatever dies in between leaves a card that the next attempt finds damaged again. A card is
    never changed and never replaced: it goes, and the step is no checkpoint until somebody saves it anew, under
    another attempt's folder. The files stay as evidence until ``vitpipe gc``. *attempt* is the one that found it; it
    has to be the newest.
    """
    key = checkpoint_card_key(run, step)
    try:
        text = workspace.read(key).decode(errors="backslashreplace")
    except FileNotFoundError:
        return
    told = canonical_json({"found_by": attempt, "problem": problem, "card": text})
    workspace.put_if_absent(f"{step_prefix(run, step)}/damaged-{attempt}.json", told.encode())
    workspace.delete(key)
