"""Which recorded results of two weights can be compared, which cannot, and why.

Two results belong together when they are of the same evaluator and protocol, with the same settings and seed, on the
same data. The name of the task is only a name. How the input of each network is made may differ: it belongs to the
network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pipeline.base.digests import canonical_json, differing_fields, sha256_hex
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store
from pipeline.evaluate.compare import COMPARED, Compared, Comparison, can_tell, compare_seeds
from pipeline.evaluate.metrics import Outcomes, unpack_outcomes
from pipeline.records.score import OUTCOMES, EvaluationKey, EvaluationResult, file_key

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
