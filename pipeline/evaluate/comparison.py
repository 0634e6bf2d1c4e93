"""Comparison of two models by their recorded results: names are resolved, results paired, per-sample outcomes compared.

Two results are a pair when evaluator, protocol, settings, seed and data are the same. The name of the task need not be:
it is only a name. How the input of each network is made may differ: it belongs to the network.

::

    resolve_weights   RUN, RUN@STEP, RUN@last, imported weights by name, or the first digits of a digest
    pair_results      evaluations that both have (Pairing), and those that only one has, with the reason (Unpaired)
    compare_named     both, then each pairing compared: a ComparisonTable
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from pipeline.base.digests import canonical_json, differing_fields, sha256_hex
from pipeline.base.errors import DamageError, InputError, StoreAccessError, VitpipeError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.metrics.outcomes import Outcomes, unpack_outcomes
from pipeline.evaluate.significance import (
    COMPARED_METRICS,
    ComparedMetric,
    Comparison,
    can_compare,
    compare_seeds,
    holm,
)
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

NO_COUNTERPART = "the other has none"  # the reason of Unpaired, when no evaluation of the other side is similar
_LAST = "last"
_DIGEST = re.compile(r"[0-9a-f]{6,64}")
_DIGEST_DIGITS = 12  # of a digest, in names and errors
_MAX_SETTINGS = 3  # differing settings that are named
_MAX_REASONS = 3  # reasons that an error names

_BySeed = dict[int, EvaluationResult]
_EntryId = tuple[str, str]  # evaluator, and all else that must be equal, as canonical JSON


@dataclass(frozen=True)
class NamedWeights:
    """The digest of the weights, and what to call them."""

    name: str
    digest: str


@dataclass(frozen=True)
class ComparisonRow:
    """One evaluation compared; ``p_holm``: its p value adjusted for all rows of the table."""

    key: EvaluationKey
    seeds: tuple[int, ...]
    comparison: Comparison
    p_holm: float


@dataclass(frozen=True)
class Incomparable:
    """One evaluation, or some seeds of it, that could not be compared. ``side``: "a" or "b" if one has it, or "both".

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
    rows: tuple[ComparisonRow, ...]
    incomparable: tuple[Incomparable, ...]


def compare_named(workspace: Store, a: str, b: str, metric: str | None, only: ResultFilter) -> ComparisonTable:
    """Compare what *a* and *b* name (``resolve_weights``) by *metric*; None: each by its headline.

    Raises InputError for an unknown name or metric. What cannot be compared is in the table, not raised.
    """
    if metric is not None:
        _parse_metric(metric)
    results = [result for result in list_results(workspace) if only.wants(result.key)]
    side_a, side_b = resolve_weights(workspace, a, results), resolve_weights(workspace, b, results)
    paired, unpaired = pair_results(_results_of(side_a, results), _results_of(side_b, results))
    compared, failed = compare_pairings(workspace, paired, metric)
    alone = (Incomparable(entry.side, entry.result, entry.seeds, entry.reason) for entry in unpaired)
    return ComparisonTable(side_a, side_b, adjusted_rows(compared), (*failed, *alone))


def _results_of(side: NamedWeights, results: list[EvaluationResult]) -> list[EvaluationResult]:
    return [result for result in results if result.key.weights_digest == side.digest]


def comparison_json(table: ComparisonTable) -> dict[str, Any]:
    """Plain values."""
    return {
        "a": asdict(table.a),
        "b": asdict(table.b),
        "comparisons": [_row_json(table, row) for row in table.rows],
        "not_compared": [
            _key_json(entry.key, entry.seeds) | {"side": entry.side, "reason": entry.reason}
            for entry in table.incomparable
        ],
    }


def _row_json(table: ComparisonTable, row: ComparisonRow) -> dict[str, Any]:
    values = asdict(row.comparison) | {"p_holm": row.p_holm}
    return _key_json(row.key, row.seeds) | values | {"sentence": row.comparison.sentence(table.a.name, table.b.name)}


def _key_json(key: EvaluationKey, seeds: tuple[int, ...]) -> dict[str, Any]:
    return {"task": key.task, "evaluator": key.evaluator, "settings": key.settings, "seeds": list(seeds)}


def require_rows(table: ComparisonTable) -> None:
    """Raise InputError when nothing was compared, with the first reasons."""
    if table.rows:
        return
    reasons = [
        f"{entry.key.evaluator} on {entry.key.task}: {side_text(table, entry)}{entry.reason}"
        for entry in table.incomparable
    ]
    problem = f"{table.a.name} and {table.b.name} have no evaluation in common"
    more = f" (and {len(reasons) - _MAX_REASONS} more)" if len(reasons) > _MAX_REASONS else ""
    shown = "; ".join(reasons[:_MAX_REASONS])
    raise InputError(problem, shown + more if reasons else "evaluate them with: vitpipe evaluate")


def side_text(table: ComparisonTable, entry: Incomparable) -> str:
    """``only RUN@STEP has it; `` where one side alone has the evaluation, else ""."""
    names = {"a": table.a.name, "b": table.b.name}
    return f"only {names[entry.side]} has it; " if entry.side in names else ""


# -- names


def resolve_weights(workspace: Store, text: str, results: Iterable[EvaluationResult]) -> NamedWeights:
    """What *text* names. ``RUN`` is ``RUN@last``, its newest checkpoint; steps that retention removed count too.

    A digest is looked for among those that *results* are of. Raises InputError, naming what there is.
    """
    run, at, step = text.rpartition("@")
    if at:
        return _of_run(workspace, run, _LAST if step == _LAST else str(parse_reference(text)[1]))
    if workspace.head(f"{run_prefix(text)}/run.json") is not None:
        return _of_run(workspace, text, _LAST)
    card = read_imported_card(workspace, text)
    if card is not None:
        return NamedWeights(text, card.weights.sha256)
    if not _DIGEST.fullmatch(text):
        return _of_run(workspace, text, _LAST)  # raises that there is no such run
    digests = {result.key.weights_digest for result in results} - {PIXELS}
    matches = sorted(digest for digest in digests if digest.startswith(text))
    shown = [digest[:_DIGEST_DIGITS] for digest in matches]
    if len(matches) == 1:
        return NamedWeights(f"weights {shown[0]}", matches[0])
    if matches:
        raise InputError(f"{text!r} begins {len(matches)} digests: {', '.join(shown)}", "give more")
    raise InputError(f"{text!r} is no run, and no evaluated weights have a digest that begins so")


def _of_run(workspace: Store, run: str, step: str) -> NamedWeights:
    read_run_card(workspace, run)
    cards = {card.step: card for card in list_retired_cards(workspace, run)}
    cards |= {card.step: card for card in list_checkpoint_cards(workspace, run)}
    if step == _LAST:
        trained = [number for number in cards if number > 0]
        if not trained:
            raise InputError(f"run {run!r} has no checkpoint of a trained model yet")
        step = str(max(trained))
    if int(step) not in cards:
        known = ", ".join(str(number) for number in sorted(cards)) or "none"
        raise InputError(
            f"no checkpoint {run}@{step} in {workspace.uri}", f"its steps: {known}, or write {run}@{_LAST}"
        )
    return NamedWeights(f"{run}@{step}", cards[int(step)].weights.sha256)


# -- pairs


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

    Each side holds the results of one weights. Results are a pair when evaluator, protocol, settings, seed and the
    digests of the data are equal. The task's name and the way in which a network's input is made are not compared.
    Evaluations without a metric (pictures) are left out.
    """
    all_a, all_b = _by_entry(results_a), _by_entry(results_b)
    paired, unpaired = [], []
    for entry in sorted(all_a.keys() | all_b.keys()):
        of_a, of_b = all_a.get(entry, {}), all_b.get(entry, {})
        both = {seed: (of_a[seed], of_b[seed]) for seed in sorted(of_a.keys() & of_b.keys())}
        if both:
            paired.append(Pairing(both))
        for side, own, opposite, opposites in (("a", of_a, of_b, all_b), ("b", of_b, of_a, all_a)):
            seeds = tuple(sorted(own.keys() - opposite.keys()))
            if seeds:
                first = own[seeds[0]]
                reason = _seeds_reason(opposite) if opposite else _difference_reason(first.key, opposites)
                unpaired.append(Unpaired(side, first, seeds, reason))
    return (
        sorted(paired, key=lambda pairing: _order(pairing.key)),
        sorted(unpaired, key=lambda alone: _order(alone.result.key)),
    )


def _by_entry(results: Iterable[EvaluationResult]) -> dict[_EntryId, _BySeed]:
    entries: dict[_EntryId, _BySeed] = {}
    for result in sorted(results, key=lambda result: result.id):
        if result.metrics:
            entry = (result.key.evaluator, canonical_json(_protocol_of(result.key)))
            entries.setdefault(entry, {})[result.key.seed] = result
    return entries


def _protocol_of(key: EvaluationKey) -> dict[str, Any]:
    """All that must be equal in two evaluations of one evaluator, for them to be compared."""
    return key.model_dump(mode="json", include={"protocol_version", "dataset_digests", "settings"})


def _order(key: EvaluationKey) -> tuple[str, str, str]:
    return key.task, key.evaluator, canonical_json(_protocol_of(key))


def _seeds_reason(opposite: _BySeed) -> str:
    return f"the other has only seed {', '.join(str(seed) for seed in sorted(opposite))}"


def _difference_reason(key: EvaluationKey, opposites: dict[_EntryId, _BySeed]) -> str:
    """Why none of the *opposites* is the same evaluation: in what the nearest of them differs."""
    similar = [
        next(iter(seeds.values())).key for entry, seeds in sorted(opposites.items()) if entry[0] == key.evaluator
    ]
    similar = [near for near in similar if near.task == key.task or near.dataset_digests == key.dataset_digests]
    if not similar:
        return NO_COUNTERPART
    nearest = min((differing_fields(_protocol_of(near), _protocol_of(key)) for near in similar), key=len)
    if any(line.startswith("dataset_digests") for line in nearest):
        return f"the other's is on other data, though also called {key.task}"
    shown = [line.removeprefix("settings.").replace(" -> ", " against ") for line in nearest]
    more = f" and {len(shown) - _MAX_SETTINGS} more" if len(shown) > _MAX_SETTINGS else ""
    return f"the other has it with other settings: {', '.join(shown[:_MAX_SETTINGS])}{more}"


# -- values


def compare_pairings(
    workspace: Store, paired: list[Pairing], metric: str | None
) -> tuple[list[tuple[Pairing, Comparison]], list[Incomparable]]:
    """Compare each of *paired* by *metric* (None: its headline), and list those for which it is not possible.

    Raises StoreAccessError when the store does not answer.
    """
    compared, failed = [], []
    for pairing in paired:
        try:
            compared.append((pairing, _compare_pairing(workspace, pairing, metric)))
        except StoreAccessError:
            raise
        except VitpipeError as error:
            failed.append(Incomparable("both", pairing.first, tuple(pairing.pairs), str(error)))
    return compared, failed


def _compare_pairing(workspace: Store, pairing: Pairing, metric: str | None) -> Comparison:
    """B against A by the stored outcomes of all common seeds.

    Raises InputError when outcomes are missing or do not hold the metric, DamageError when they are not those that the
    result lists.
    """
    compared_metric = _parse_metric(metric or pairing.headline)
    pairs = [tuple(_read_outcomes(workspace, result) for result in pair) for pair in pairing.pairs.values()]
    return compare_seeds(cast(Sequence[tuple[Outcomes, Outcomes]], pairs), compared_metric)


def adjusted_rows(compared: list[tuple[Pairing, Comparison]]) -> tuple[ComparisonRow, ...]:
    """With p values that are adjusted for their number (``holm``)."""
    adjusted = holm([comparison.p for _, comparison in compared])
    return tuple(
        ComparisonRow(pairing.key, tuple(pairing.pairs), comparison, p)
        for (pairing, comparison), p in zip(compared, adjusted, strict=True)
    )


def has_metric(workspace: Store, result: EvaluationResult, metric: str) -> bool:
    """False only when *result* certainly does not hold *metric*: not recorded, and not in its outcomes."""
    if any(measured.name == metric for measured in result.metrics):
        return True
    try:
        return can_compare(_read_outcomes(workspace, result), _parse_metric(metric))
    except (InputError, DamageError):
        return True


def _parse_metric(name: str) -> ComparedMetric:
    """The metric of this *name*. Raises InputError for one that cannot be compared from outcomes."""
    for known in COMPARED_METRICS:
        if known == name:
            return known
    raise InputError(f"{name!r} cannot be compared sample by sample", f"there are: {', '.join(COMPARED_METRICS)}")


def _read_outcomes(workspace: Store, result: EvaluationResult) -> Outcomes:
    """The per-sample outcomes of *result*. Raises InputError when there are none, DamageError when they changed."""
    digest = result.files.get(OUTCOMES)
    if digest is None:
        raise InputError("no outcomes are stored with it")
    key = file_key(result.id, OUTCOMES, digest)
    try:
        data = workspace.read(key)
    except FileNotFoundError:
        raise InputError(f"{key} is gone", "evaluate again with: vitpipe evaluations redo") from None
    if sha256_hex(data) != digest:
        raise DamageError(f"{key} is not what its result lists", "evaluate again with: vitpipe evaluations redo")
    return unpack_outcomes(data, key)
