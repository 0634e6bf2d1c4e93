"""``vitpipe gate``: may the candidate take the baseline's place? For CI: the exit code is the answer.

0: no evaluation of the baseline is worse by more than allowed. 1: some are. 2: it cannot be told, since something that
the baseline has is missing or cannot be compared, or nothing is comparable; and nothing is known to be worse.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.errors import FailedError, InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.comparison import ComparisonRow, Incomparable, compare_named, has_metric
from pipeline.evaluate.comparison import ComparisonTable as Compared
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

    def is_beyond(self, line: ComparisonRow) -> bool:
        """True when the drop is larger than allowed."""
        measured, low, _ = line.comparison.drop
        return (low if self.confident else measured) > self.max_drop + _ROUNDING


@dataclass(frozen=True)
class GateResult:
    """What the gate found. *missing*: what the baseline has and cannot be judged."""

    limits: GateLimits
    compared: Compared
    failing: tuple[ComparisonRow, ...]
    missing: tuple[Incomparable, ...]

    @property
    def exit_code(self) -> int:
        """As the module says."""
        if self.failing:
            return 1
        return 2 if self.missing or not self.compared.lines else 0


def judge(workspace: Store, baseline: str, candidate: str, limits: GateLimits, only: ResultFilter) -> GateResult:
    """Compare what both names stand for. Raises InputError for a name or a metric that there is not."""
    if not limits.max_drop >= 0:
        raise InputError(f"--max-drop {limits.max_drop:g} is not 0 or more")
    compared = compare_named(workspace, baseline, candidate, limits.metric, only)
    failing = tuple(line for line in compared.lines if limits.is_beyond(line))
    of_baseline = [one for one in compared.not_compared if one.side != "b"]
    missing = tuple(one for one in of_baseline if has_metric(workspace, one.result, limits.metric))
    return GateResult(limits, compared, failing, missing)


def raise_unless_passed(found: GateResult) -> None:
    """Raise FailedError with a line for each evaluation that is worse, InputError for what is missing."""
    worse = [f"worse: {sentence(line, found.limits)}" for line in found.failing]
    missing = [f"missing: {_missing(one, found.compared)}" for one in found.missing]
    if worse:
        raise FailedError("\n".join(worse + missing))
    if missing:
        raise InputError("\n".join(missing))
    if not found.compared.lines:
        names = f"{found.compared.a.name} and {found.compared.b.name}"
        raise InputError(
            f"nothing to judge: no {found.limits.metric} of the baseline can be compared between {names}",
            "vitpipe scores --compare A B tells what there is",
        )


def sentence(line: ComparisonRow, limits: GateLimits) -> str:
    """``linear on digits: top1 80.00 -> 78.80, worse by 1.20 points (95 % interval ...), 0.5 allowed, n = 899``."""
    one = line.comparison
    digits, unit, scale = (2, " points", 100) if one.in_points else (4, "", 1)
    drop, low, high = one.drop
    if drop > 0:
        moved = f"worse by {drop:.{digits}f}{unit} (95 % interval {low:.{digits}f} to {high:.{digits}f})"
    else:
        moved = f"better by {0 - drop:.{digits}f}{unit} (95 % interval {0 - high:.{digits}f} to {0 - low:.{digits}f})"
    return (
        f"{name_of(line)}: {one.metric} {scale * one.value_a:.{digits}f} -> {scale * one.value_b:.{digits}f}, "
        f"{moved}, {limits.max_drop:g} allowed, n = {one.num_samples:,}"
    )


def name_of(line: ComparisonRow | Incomparable) -> str:
    """The evaluation as people call it."""
    shots = line.key.settings.get("shots") if line.key.evaluator == "fewshot" else None
    name = line.key.evaluator if shots is None else f"{shots}-shot"
    seeds = f" seeds {','.join(str(seed) for seed in line.seeds)}" if any(line.seeds) else ""
    return f"{name} on {line.key.task}{seeds}"


def _missing(one: Incomparable, compared: Compared) -> str:
    who = "cannot be compared" if one.side == "both" else f"{compared.b.name} has no result to compare"
    return f"{name_of(one)}: {who}: {one.reason}"
