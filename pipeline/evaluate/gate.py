"""The gate: may the candidate take the baseline's place? For CI: the exit code is the answer.

0: no evaluation of the baseline is worse by more than allowed. 1: some are. 2: it cannot be decided, since something
that the baseline has is missing or cannot be compared, or nothing is comparable; and nothing is known to be worse.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.errors import FailedError, InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.comparison import ComparisonRow, ComparisonTable, Incomparable, compare_named, has_metric
from pipeline.records.evaluators import variant_name
from pipeline.records.score import ResultFilter

_ROUNDING = 1e-9  # a drop that is exactly as large as allowed passes


@dataclass(frozen=True)
class GateLimits:
    """What is allowed: a drop of *max_drop*, in points for shares, else in the metric's unit.

    *confident*: only what is beyond it with its whole 95 % interval counts as worse.
    """

    metric: str
    max_drop: float
    confident: bool = False

    def is_beyond(self, row: ComparisonRow) -> bool:
        """True when the drop is larger than allowed."""
        measured, low, _ = row.comparison.drop
        return (low if self.confident else measured) > self.max_drop + _ROUNDING


@dataclass(frozen=True)
class GateResult:
    """The comparison, the rows that fail, and *missing*: what the baseline has and cannot be judged."""

    limits: GateLimits
    table: ComparisonTable
    failing: tuple[ComparisonRow, ...]
    missing: tuple[Incomparable, ...]

    @property
    def exit_code(self) -> int:
        """See the module."""
        if self.failing:
            return 1
        return 2 if self.missing or not self.table.rows else 0


def judge(workspace: Store, baseline: str, candidate: str, limits: GateLimits, only: ResultFilter) -> GateResult:
    """Compare the weights that the two names refer to. Raises InputError for an unknown name or metric."""
    if not limits.max_drop >= 0:
        raise InputError(f"--max-drop {limits.max_drop:g} is not 0 or more")
    table = compare_named(workspace, baseline, candidate, limits.metric, only)
    failing = tuple(row for row in table.rows if limits.is_beyond(row))
    of_baseline = [entry for entry in table.incomparable if entry.side != "b"]
    missing = tuple(entry for entry in of_baseline if has_metric(workspace, entry.result, limits.metric))
    return GateResult(limits, table, failing, missing)


def raise_unless_passed(result: GateResult) -> None:
    """Raise FailedError with a line for each evaluation that is worse, InputError for what is missing."""
    worse = [f"worse: {describe_row(row, result.limits)}" for row in result.failing]
    missing = [f"missing: {describe_missing(entry, result.table)}" for entry in result.missing]
    if worse:
        raise FailedError("\n".join(worse + missing))
    if missing:
        raise InputError("\n".join(missing))
    if not result.table.rows:
        names = f"{result.table.a.name} and {result.table.b.name}"
        raise InputError(
            f"nothing to judge: no {result.limits.metric} of the baseline can be compared between {names}",
            "vitpipe scores --compare A B tells what there is",
        )


def describe_row(row: ComparisonRow, limits: GateLimits) -> str:
    """``linear on digits: top1 80.00 -> 78.80, worse by 1.20 points (95 % interval ...), 0.5 allowed, n = 899``."""
    comparison = row.comparison
    digits, unit, scale = (2, " points", 100) if comparison.in_points else (4, "", 1)
    drop, low, high = comparison.drop
    if drop > 0:
        moved = f"worse by {drop:.{digits}f}{unit} (95 % interval {low:.{digits}f} to {high:.{digits}f})"
    else:
        moved = f"better by {0 - drop:.{digits}f}{unit} (95 % interval {0 - high:.{digits}f} to {0 - low:.{digits}f})"
    value_a, value_b = (f"{scale * value:.{digits}f}" for value in (comparison.value_a, comparison.value_b))
    return (
        f"{_evaluation_name(row)}: {comparison.metric} {value_a} -> {value_b}, "
        f"{moved}, {limits.max_drop:g} allowed, n = {comparison.num_samples:,}"
    )


def describe_missing(entry: Incomparable, table: ComparisonTable) -> str:
    """Which evaluation of the baseline cannot be judged, and why."""
    problem = "cannot be compared" if entry.side == "both" else f"{table.b.name} has no result to compare"
    return f"{_evaluation_name(entry)}: {problem}: {entry.reason}"


def _evaluation_name(entry: ComparisonRow | Incomparable) -> str:
    """The evaluation as people call it."""
    name = variant_name(entry.key.evaluator, entry.key.settings) or entry.key.evaluator
    seeds = f" seeds {','.join(str(seed) for seed in entry.seeds)}" if any(entry.seeds) else ""
    return f"{name} on {entry.key.task}{seeds}"
