"""``vitpipe gate``: may the candidate take the baseline's place? For CI: the exit code is the answer.

0: no evaluation of the baseline is worse by more than allowed. 1: some are. 2: it cannot be told, since something that
the baseline has is missing or cannot be compared, or nothing is comparable; and nothing is known to be worse.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.base.console import print_result, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Evaluator, Json, Task, Workspace, open_workspace
from pipeline.evaluate.comparison import comparison_json
from pipeline.evaluate.gate import (
    GateLimits,
    GateResult,
    describe_missing,
    describe_row,
    judge,
    raise_unless_passed,
)
from pipeline.records.score import ResultFilter


def gate(
    baseline: Annotated[
        str, typer.Option(metavar="A", help="what is good now: RUN, RUN@STEP, RUN@last or a digest of weights")
    ],
    candidate: Annotated[str, typer.Option(metavar="B", help="what is to take its place, named likewise")],
    metric: Annotated[str, typer.Option(help="top1, top5, mean_per_class, nll or mAP")] = "top1",
    max_drop: Annotated[
        float, typer.Option(help="by how much B may be worse: in points for shares (0.5: 80.0 % -> 79.5 %), else as is")
    ] = 0.0,
    workspace: Workspace = None,
    task: Task = None,
    evaluator: Evaluator = None,
    confident: Annotated[
        bool, typer.Option("--confident", help="fail only where the whole 95 % interval lies beyond --max-drop")
    ] = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """For CI: fail when B is worse than A. Every evaluation that A has is compared with the same one of B.

    `vitpipe gate -w ws --baseline good@last --candidate new@last --metric top1 --max-drop 0.5`

    Exit code **0**: nothing is worse by more than --max-drop. **1**: something is; one line names each. **2**: it
    cannot be told, since B lacks a result that A has, or nothing can be compared: a missing result never passes. Where
    something is worse and something is missing, it is 1.

    What was measured decides. On small test sets that fails by chance now and then; --confident fails only when the
    drop is beyond doubt, and lets pass what may be one. Compared is as in `vitpipe scores --compare`.
    """
    store = open_workspace(workspace, endpoint)
    verdict = judge(store, baseline, candidate, GateLimits(metric, max_drop, confident), ResultFilter(task, evaluator))

    def show() -> None:
        for line in verdict.table.rows:
            if line not in verdict.failing:
                print_text(f"ok: {describe_row(line, verdict.limits)}")
        if verdict.exit_code == 0:
            print_text(f"passed: {verdict.table.b.name} may replace {verdict.table.a.name}")

    print_result(as_json, {"workspace": store.uri} | _verdict_json(verdict), show)
    raise_unless_passed(verdict)


def _verdict_json(verdict: GateResult) -> dict[str, Any]:
    return comparison_json(verdict.table) | {
        "passed": verdict.exit_code == 0,
        "exit_code": verdict.exit_code,
        "metric": verdict.limits.metric,
        "max_drop": verdict.limits.max_drop,
        "confident": verdict.limits.confident,
        "worse": [describe_row(line, verdict.limits) for line in verdict.failing],
        "missing": [describe_missing(row, verdict.table) for row in verdict.missing],
    }


if __name__ == "__main__":
    main(gate)
