"""Commands about what was measured: scores and comparisons, and the gate for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import print_table, print_text
from jobs.options import Debug, Endpoint, Json, Workspace, finish, needed, stores_of
from pipeline.base.errors import InputError
from pipeline.base.store import Store, open_store

Task = Annotated[str | None, typer.Option(help="only this task; * and ? as in a shell")]
Evaluator = Annotated[str | None, typer.Option(help="only this evaluator: linear, knn, fewshot, finetune, ...")]


def _open(workspace: str | None, endpoint: str | None) -> Store:
    uri = needed(workspace)
    return open_store(uri, stores_of(uri, endpoint))


def scores(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="runs; none: everything in the workspace")
    ] = None,
    workspace: Workspace = None,
    task: Task = None,
    evaluator: Evaluator = None,
    metric: Annotated[
        str | None,
        typer.Option(help="one metric (top1, top5, mean_per_class, nll, ece, mAP), or all; default: the headline"),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="only the checkpoint of this step, beside the baselines")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="is B better than A? each RUN, RUN@STEP, RUN@last or a digest of weights"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="file to write every score to, .parquet or .csv, for pandas or DuckDB")
    ] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What was measured, with intervals; or with --compare, whether one checkpoint is better than another.

    `vitpipe scores -w ws` shows everything, `vitpipe scores RUN -w ws --task digits --metric all` more of less. A value
    over several seeds is their mean, and ± is the standard deviation over them. The 95 % interval is over test images.

    `vitpipe scores -w ws --compare RUN@1000 RUN@2000` compares each evaluation that both have, image by image: by how
    much B is better, with which probability, and with which p (McNemar's for one seed; adjusted by Holm for the whole
    table). Over several seeds, what each found on an image is averaged first. What cannot be compared is told with
    the reason.

    A metric called `oracle_...` shows what choosing on the test data would have promised. It is no result.

    `vitpipe scores -w ws --out scores.parquet`, then `pandas.read_parquet("scores.parquet")`, or in DuckDB
    `SELECT * FROM 'scores.parquet'`.
    """
    store = _open(workspace, endpoint)
    if compare:
        given = {"a RUN": runs, "--step": step is not None, "--out": out}
        unwanted = [name for name, value in given.items() if value]
        if unwanted:
            raise InputError(f"--compare takes no {unwanted[0]}", "write RUN@STEP RUN@STEP behind --compare")
        _compare(store, compare, metric, task, evaluator, as_json)
    else:
        _scores(store, tuple(runs or ()), (task, evaluator, metric, step), out, as_json)


def _scores(
    store: Store,
    runs: tuple[str, ...],
    filters: tuple[str | None, str | None, str | None, int | None],
    out: Path | None,
    as_json: bool,
) -> None:
    from jobs import scores as job
    from jobs import scores_tables as tables
    from jobs.only import Only

    task, evaluator, metric, step = filters
    wanted = job.Wanted(runs, Only(task, evaluator), metric, step)
    if out is not None:
        job.check_out(out)
    found = job.find_scores(store, wanted)
    num_rows = job.write_scores(found, out) if out is not None else 0
    result = {"workspace": store.uri} | job.as_json(found, wanted) | ({"out": str(out)} if out else {})

    def show() -> None:
        if out is not None:
            print_text(f"{num_rows} scores in {out}")
            return
        for title, rows in tables.printed(found, wanted):
            print_table(title, tables.COLUMNS, rows)
        more = tables.further_metrics(found) if metric is None else []
        if more:
            print_text(f"also recorded: {', '.join(more)} (--metric NAME, or --metric all)")

    finish(as_json, result, show)


def _compare(
    store: Store,
    names: tuple[str, str],
    metric: str | None,
    task: str | None,
    evaluator: str | None,
    as_json: bool,
) -> None:
    from jobs import compared as job
    from jobs.only import Only

    found = job.compare_named(store, *names, metric, Only(task, evaluator))
    job.require_lines(found)

    def show() -> None:
        print_table(f"A: {found.a.name}, B: {found.b.name}", job.COLUMNS, job.comparison_rows(found))
        for line in found.lines:
            words = line.comparison.sentence(found.a.name, found.b.name)
            print_text(f"{line.key.evaluator} on {line.key.task}: {words}")
        if found.not_compared:
            columns = ("task", "evaluator", "seeds", "why")
            print_table("Not compared", columns, job.reason_rows(found))

    finish(as_json, {"workspace": store.uri} | job.as_json(found), show)


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
    from jobs import gate as job
    from jobs.only import Only

    store = _open(workspace, endpoint)
    found = job.judge(store, baseline, candidate, job.Limits(metric, max_drop, confident), Only(task, evaluator))

    def show() -> None:
        for line in found.compared.lines:
            if line not in found.failing:
                print_text(f"ok: {job.sentence(line, found.limits)}")
        if found.exit_code == 0:
            print_text(f"passed: {found.compared.b.name} may replace {found.compared.a.name}")

    finish(as_json, {"workspace": store.uri} | job.as_json(found), show)
    job.raise_unless_passed(found)
