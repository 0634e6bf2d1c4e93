"""Weights by the names that people give them: ``RUN``, ``RUN@STEP``, ``RUN@last``, the name of imported weights, or how
their digest begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from pipeline.base.digests import canonical_json, differing_fields, sha256_hex
from pipeline.base.errors import DamageError, InputError, StoreAccessError, VitpipeError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.metrics.outcomes import Outcomes, unpack_outcomes
from pipeline.evaluate.significance import COMPARED, Compared, Comparison, can_tell, compare_seeds, holm
from pipeline.records.imported import read_imported_card
from pipeline.records.run import list_checkpoint_cards, list_retired_cards, parse_reference, read_run_card, run_prefix
from pipeline.records.score import (
    OUTCOMES,
    PIXELS,
    EvaluationKey,
    EvaluationResult,
    ResultFilter,
    file_key,
    list_results,
)

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


BySeed = dict[int, EvaluationResult]
NOTHING_ALIKE = "the other has none"
_SHOWN = 3  # differing settings that are named


@dataclass(frozen=True)
class Pairing:
    """One evaluation that both have: (A, B) by seed, of the seeds that both have."""

    pairs: dict[int, tuple[EvaluationResult, EvaluationResult]]

    @property
    def key(self) -> EvaluationKey:
        """Of A's first seed."""
        return self.first.key

    @property
    def headline(self) -> str:
        """The first metric of A."""
        return self.first.metrics[0].name

    @property
    def first(self) -> EvaluationResult:
        """A's, of its first seed."""
        return next(iter(self.pairs.values()))[0]


@dataclass(frozen=True)
class Unpaired:
    """What one side, "a" or "b", has alone: an evaluation, or some seeds of it."""

    side: str
    result: EvaluationResult  # of its first seed
    seeds: tuple[int, ...]
    reason: str


def pair_results(
    results_a: Iterable[EvaluationResult], results_b: Iterable[EvaluationResult]
) -> tuple[list[Pairing], list[Unpaired]]:
    """What can be compared, and what cannot, in an order that depends on nothing but the results.

    Each side holds the results of one weights. What measures nothing (pictures) is left out.
    """
    sides = {"a": _by_entry(results_a), "b": _by_entry(results_b)}
    paired, unpaired = [], []
    for entry in sorted(sides["a"].keys() | sides["b"].keys()):
        found_a, found_b = sides["a"].get(entry, {}), sides["b"].get(entry, {})
        both = {seed: (found_a[seed], found_b[seed]) for seed in sorted(found_a.keys() & found_b.keys())}
        if both:
            paired.append(Pairing(both))
        for side, own, other in (("a", found_a, found_b), ("b", found_b, found_a)):
            seeds = tuple(sorted(own.keys() - other.keys()))
            if seeds:
                first = own[seeds[0]]
                reason = _seeds_reason(other) if other else _reason(first.key, sides["b" if side == "a" else "a"])
                unpaired.append(Unpaired(side, first, seeds, reason))
    return sorted(paired, key=lambda one: _order(one.key)), sorted(unpaired, key=lambda one: _order(one.result.key))


def compare_pairing(workspace: Store, pairing: Pairing, metric: str | None = None) -> Comparison:
    """B against A by the stored outcomes of all common seeds; *metric*: by default the first that is recorded.

    Raises InputError when outcomes are not there or do not tell the metric, DamageError when they are not what the
    result lists.
    """
    wanted = metric_of(metric or pairing.headline)
    pairs = [tuple(read_outcomes(workspace, result) for result in pair) for pair in pairing.pairs.values()]
    return compare_seeds(cast(Sequence[tuple[Outcomes, Outcomes]], pairs), wanted)


def metric_of(name: str) -> Compared:
    """The metric of this *name*. Raises InputError for one that cannot be compared from outcomes."""
    for known in COMPARED:
        if known == name:
            return known
    raise InputError(f"{name!r} cannot be compared sample by sample", f"there are: {', '.join(COMPARED)}")


def has_metric(workspace: Store, result: EvaluationResult, metric: str) -> bool:
    """False only when it is sure that *result* tells nothing of *metric*: not recorded, and not in its outcomes."""
    if any(measured.name == metric for measured in result.metrics):
        return True
    try:
        return can_tell(read_outcomes(workspace, result), metric_of(metric))
    except (InputError, DamageError):
        return True


def read_outcomes(workspace: Store, result: EvaluationResult) -> Outcomes:
    """The per-sample outcomes of *result*. Raises InputError when there are none, DamageError when they changed."""
    digest = result.files.get(OUTCOMES)
    if digest is None:
        raise InputError("no outcomes are stored with it")
    where = file_key(result.id, OUTCOMES, digest)
    try:
        data = workspace.read(where)
    except FileNotFoundError:
        raise InputError(f"{where} is gone", "evaluate again with --redo") from None
    if sha256_hex(data) != digest:
        raise DamageError(f"{where} is not what its result lists", "evaluate again with --redo")
    return unpack_outcomes(data, where)


Entry = tuple[str, str]  # evaluator, and all else that must be the same


def _by_entry(results: Iterable[EvaluationResult]) -> dict[Entry, BySeed]:
    found: dict[Entry, BySeed] = {}
    for result in sorted(results, key=lambda result: result.id):
        if result.metrics:
            entry = (result.key.evaluator, canonical_json(_rest(result.key)))
            found.setdefault(entry, {})[result.key.seed] = result
    return found


def _rest(key: EvaluationKey) -> dict[str, Any]:
    return key.model_dump(mode="json", include={"protocol_version", "dataset_digests", "settings"})


def _order(key: EvaluationKey) -> tuple[str, str, str]:
    return key.task, key.evaluator, canonical_json(_rest(key))


def _seeds_reason(other: BySeed) -> str:
    return f"the other has only seed {', '.join(str(seed) for seed in sorted(other))}"


def _reason(key: EvaluationKey, others: dict[Entry, BySeed]) -> str:
    """Why nothing of the *others* is the same evaluation: in what the nearest of them differs."""
    alike = [next(iter(found.values())).key for entry, found in sorted(others.items()) if entry[0] == key.evaluator]
    alike = [other for other in alike if other.task == key.task or other.dataset_digests == key.dataset_digests]
    if not alike:
        return NOTHING_ALIKE
    nearest = min((differing_fields(_rest(other), _rest(key)) for other in alike), key=len)
    if any(line.startswith("dataset_digests") for line in nearest):
        return f"the other's is on other data, though also called {key.task}"
    shown = [line.removeprefix("settings.").replace(" -> ", " against ") for line in nearest]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"the other has it with other settings: {', '.join(shown[:_SHOWN])}{more}"


@dataclass(frozen=True)
class ComparisonRow:
    """One evaluation compared; ``p_holm``: its p value adjusted for all lines of the table."""

    key: EvaluationKey
    seeds: tuple[int, ...]
    comparison: Comparison
    p_holm: float


@dataclass(frozen=True)
class Incomparable:
    """One evaluation, or some seeds of it, that could not be compared. ``side``: "a" or "b", who has it; else "both".

    ``result``: of the first of its seeds; A's where both have it.
    """

    side: str
    result: EvaluationResult
    seeds: tuple[int, ...]
    reason: str

    @property
    def key(self) -> EvaluationKey:
        """What was evaluated."""
        return self.result.key


@dataclass(frozen=True)
class ComparisonTable:
    """B against A."""

    a: NamedWeights
    b: NamedWeights
    lines: tuple[ComparisonRow, ...]
    not_compared: tuple[Incomparable, ...]


def compare_named(workspace: Store, a: str, b: str, metric: str | None, only: ResultFilter) -> ComparisonTable:
    """Compare what *a* and *b* name (:func:`find_weights`) by *metric*; None: each by its headline.

    Raises InputError for a name or a metric that there is not. What cannot be compared is told, not raised.
    """
    if metric is not None:
        metric_of(metric)
    results = [result for result in list_results(workspace) if only.wants(result.key)]
    side_a, side_b = find_weights(workspace, a, results), find_weights(workspace, b, results)
    paired, unpaired = pair_results(_of(side_a, results), _of(side_b, results))
    done, failed = compare_all(workspace, paired, metric)
    return ComparisonTable(side_a, side_b, lines_of(done), (*failed, *(_told(one) for one in unpaired)))


def _of(side: NamedWeights, results: list[EvaluationResult]) -> list[EvaluationResult]:
    return [result for result in results if result.key.weights_digest == side.digest]


def compare_all(
    workspace: Store, paired: list[Pairing], metric: str | None
) -> tuple[list[tuple[Pairing, Comparison]], list[Incomparable]]:
    """Compare each of *paired*, and say of which it is not possible.

    Raises StoreAccessError when the store does not answer.
    """
    done, failed = [], []
    for pairing in paired:
        try:
            done.append((pairing, compare_pairing(workspace, pairing, metric)))
        except StoreAccessError:
            raise
        except VitpipeError as error:
            failed.append(Incomparable("both", pairing.first, tuple(pairing.pairs), str(error)))
    return done, failed


def lines_of(done: list[tuple[Pairing, Comparison]]) -> tuple[ComparisonRow, ...]:
    """With p values that are adjusted for their number."""
    adjusted = holm([comparison.p for _, comparison in done])
    pairs = zip(done, adjusted, strict=True)
    return tuple(ComparisonRow(pairing.key, tuple(pairing.pairs), comparison, p) for (pairing, comparison), p in pairs)


def _told(one: Unpaired) -> Incomparable:
    return Incomparable(one.side, one.result, one.seeds, one.reason)


def comparison_json(found: ComparisonTable) -> dict[str, Any]:
    """Plain values."""
    return {
        "a": asdict(found.a),
        "b": asdict(found.b),
        "comparisons": [_line_json(found, line) for line in found.lines],
        "not_compared": [
            _about(one.key, one.seeds) | {"side": one.side, "reason": one.reason} for one in found.not_compared
        ],
    }


def _line_json(found: ComparisonTable, line: ComparisonRow) -> dict[str, Any]:
    values = asdict(line.comparison) | {"p_holm": line.p_holm}
    return _about(line.key, line.seeds) | values | {"sentence": line.comparison.sentence(found.a.name, found.b.name)}


def _about(key: EvaluationKey, seeds: tuple[int, ...]) -> dict[str, Any]:
    return {"task": key.task, "evaluator": key.evaluator, "settings": key.settings, "seeds": list(seeds)}


def require_lines(found: ComparisonTable) -> None:
    """Raise InputError when nothing was compared, with the first reasons."""
    if found.lines:
        return
    reasons = [f"{one.key.evaluator} on {one.key.task}: {_who(found, one)}{one.reason}" for one in found.not_compared]
    what = f"{found.a.name} and {found.b.name} have no evaluation in common"
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    raise InputError(what, "; ".join(reasons[:3]) + more if reasons else "evaluate them with: vitpipe evaluate")


def _who(found: ComparisonTable, one: Incomparable) -> str:
    names = {"a": found.a.name, "b": found.b.name}
    return f"only {names[one.side]} has it; " if one.side in names else ""
