"""``vitpipe scores --compare A B``: every evaluation that two weights have in common, compared sample by sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jobs.named_weights import NamedWeights, find_weights
from jobs.only import Only
from jobs.settings_words import settings_in_short
from pipeline.base.errors import InputError, StoreAccessError, VitpipeError
from pipeline.base.store import Store
from pipeline.evaluate.compare import Comparison
from pipeline.evaluate.pairing import Pairing, Unpaired, compare_pairing, metric_of, pair_results
from pipeline.evaluate.significance import holm
from pipeline.records.score import EvaluationKey, EvaluationResult, list_results

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Line:
    """One evaluation compared; ``p_holm``: its p value adjusted for all lines of the table."""

    key: EvaluationKey
    seeds: tuple[int, ...]
    comparison: Comparison
    p_holm: float


@dataclass(frozen=True)
class NotCompared:
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
class Compared:
    """B against A."""

    a: NamedWeights
    b: NamedWeights
    lines: tuple[Line, ...]
    not_compared: tuple[NotCompared, ...]


def compare_named(workspace: Store, a: str, b: str, metric: str | None, only: Only) -> Compared:
    """Compare what *a* and *b* name (:func:`jobs.named_weights.find_weights`) by *metric*; None: each by its headline.

    Raises InputError for a name or a metric that there is not. What cannot be compared is told, not raised.
    """
    if metric is not None:
        metric_of(metric)
    results = [result for result in list_results(workspace) if only.wants(result.key)]
    side_a, side_b = find_weights(workspace, a, results), find_weights(workspace, b, results)
    paired, unpaired = pair_results(_of(side_a, results), _of(side_b, results))
    done, failed = compare_all(workspace, paired, metric)
    return Compared(side_a, side_b, lines_of(done), (*failed, *(_told(one) for one in unpaired)))


def _of(side: NamedWeights, results: list[EvaluationResult]) -> list[EvaluationResult]:
    return [result for result in results if result.key.weights_digest == side.digest]


def compare_all(
    workspace: Store, paired: list[Pairing], metric: str | None
) -> tuple[list[tuple[Pairing, Comparison]], list[NotCompared]]:
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
            failed.append(NotCompared("both", pairing.first, tuple(pairing.pairs), str(error)))
    return done, failed


def lines_of(done: list[tuple[Pairing, Comparison]]) -> tuple[Line, ...]:
    """With p values that are adjusted for their number."""
    adjusted = holm([comparison.p for _, comparison in done])
    pairs = zip(done, adjusted, strict=True)
    return tuple(Line(pairing.key, tuple(pairing.pairs), comparison, p) for (pairing, comparison), p in pairs)


def _told(one: Unpaired) -> NotCompared:
    return NotCompared(one.side, one.result, one.seeds, one.reason)


def as_json(found: Compared) -> dict[str, Any]:
    """Plain values."""
    return {
        "a": asdict(found.a),
        "b": asdict(found.b),
        "comparisons": [_line_json(found, line) for line in found.lines],
        "not_compared": [
            _about(one.key, one.seeds) | {"side": one.side, "reason": one.reason} for one in found.not_compared
        ],
    }


def _line_json(found: Compared, line: Line) -> dict[str, Any]:
    values = asdict(line.comparison) | {"p_holm": line.p_holm}
    return _about(line.key, line.seeds) | values | {"sentence": line.comparison.sentence(found.a.name, found.b.name)}


def _about(key: EvaluationKey, seeds: tuple[int, ...]) -> dict[str, Any]:
    return {"task": key.task, "evaluator": key.evaluator, "settings": key.settings, "seeds": list(seeds)}


def require_lines(found: Compared) -> None:
    """Raise InputError when nothing was compared, with the first reasons."""
    if found.lines:
        return
    reasons = [f"{one.key.evaluator} on {one.key.task}: {_who(found, one)}{one.reason}" for one in found.not_compared]
    what = f"{found.a.name} and {found.b.name} have no evaluation in common"
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    raise InputError(what, "; ".join(reasons[:3]) + more if reasons else "evaluate them with: vitpipe evaluate")


def comparison_rows(found: Compared) -> Rows:
    """For people, one row for each line."""
    return [_row(line) for line in found.lines]


COLUMNS = ("task", "evaluator", "metric", "A", "B", "B - A", "95 % interval", "B better", "p", "p (Holm)", "n", "seeds")


def _row(line: Line) -> tuple[str, ...]:
    one = line.comparison
    scale, digits, sign = (100, 2, " %") if one.in_points else (1, 4, "")
    change, low, high = (f"{scale * value:+.{digits}f}" for value in (one.difference, one.low, one.high))
    settings = settings_in_short(line.key)
    return (
        line.key.task,
        f"{line.key.evaluator} ({settings})" if settings else line.key.evaluator,
        one.metric,
        f"{scale * one.value_a:.{digits}f}{sign}",
        f"{scale * one.value_b:.{digits}f}{sign}",
        change,
        f"[{low}, {high}]",
        _odds(one.probability),
        f"{one.p:.2g}",
        f"{line.p_holm:.2g}",
        f"{one.num_samples:,}",
        ",".join(str(seed) for seed in line.seeds),
    )


def _odds(probability: float) -> str:
    if probability > 0.999:
        return "> 99.9 %"
    return "< 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"


def reason_rows(found: Compared) -> Rows:
    """What could not be compared, and why."""
    return [
        (
            one.key.task,
            f"{one.key.evaluator} ({settings_in_short(one.key)})",
            ",".join(str(seed) for seed in one.seeds),
            f"{_who(found, one)}{one.reason}",
        )
        for one in found.not_compared
    ]


def _who(found: Compared, one: NotCompared) -> str:
    names = {"a": found.a.name, "b": found.b.name}
    return f"only {names[one.side]} has it; " if one.side in names else ""
