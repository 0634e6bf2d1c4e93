"""``vitpipe scores``: what was measured, of which weights, with which certainty; as tables, JSON, parquet or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.base.console import print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Evaluator, Json, Task, Workspace, _open, print_result
from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.comparison import ComparisonRow, _who, compare_named, comparison_json, require_lines
from pipeline.evaluate.comparison import ComparisonTable as Compared
from pipeline.evaluate.recipe import settings_summary
from pipeline.records.evaluators import HEADLINES
from pipeline.report import query as job
from pipeline.report.formatting import ORACLE_WORDS, interval, is_oracle, number
from pipeline.report.query import ScoreQuery, Scores, cells_of, wants_metric
from pipeline.report.tables import SOURCE, Cell, ScoreRow, TaskTable, published_of

Rows = list[tuple[str, ...]]


def comparison_rows(found: Compared) -> Rows:
    """For people, one row for each line."""
    return [_row(line) for line in found.lines]


COLUMNS = ("task", "evaluator", "metric", "A", "B", "B - A", "95 % interval", "B better", "p", "p (Holm)", "n", "seeds")


def _row(line: ComparisonRow) -> tuple[str, ...]:
    one = line.comparison
    scale, digits, sign = (100, 2, " %") if one.in_points else (1, 4, "")
    change, low, high = (f"{scale * value:+.{digits}f}" for value in (one.difference, one.low, one.high))
    settings = settings_summary(line.key)
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
            f"{one.key.evaluator} ({settings_summary(one.key)})",
            ",".join(str(seed) for seed in one.seeds),
            f"{_who(found, one)}{one.reason}",
        )
        for one in found.not_compared
    ]


ScoreRows = list[tuple[str, ...]]
SCORE_COLUMNS = ("run", "of", "evaluator", "settings", "metric", "value", "95 % interval", "n", "seeds")


def printed(found: list[Scores], wanted: ScoreQuery) -> list[tuple[str, ScoreRows]]:
    """One table for each task: (title, rows of COLUMNS)."""
    tasks = sorted({table.task for scores in found for table in scores.tables})
    by_task: dict[str, ScoreRows] = {task: [] for task in tasks}
    published: dict[str, ScoreRows] = {}
    for scores in found:
        for table in scores.tables:
            for row in table.rows:
                if _is_printed(row, wanted.metric):
                    by_task[table.task] += [
                        _printed(scores.name, of, row, cell) for of, cell in cells_of(row) if cell is not None
                    ]
            if wants_metric("top1", wanted.metric):
                published[table.task] = published.get(table.task) or _published(table)
    return [(task, rows + published.get(task, [])) for task, rows in by_task.items() if rows]


def _is_printed(row: ScoreRow, wanted: str | None) -> bool:
    return row.is_headline if wanted is None else wants_metric(row.metric, wanted)


def _printed(name: str, of: str, row: ScoreRow, cell: Cell) -> tuple[str, ...]:
    metric = f"{row.metric}: {ORACLE_WORDS}" if is_oracle(row.metric) else row.metric
    return (
        name,
        of,
        row.key.evaluator,
        settings_summary(row.key),
        metric,
        number(row.metric, cell.value),
        interval(row.metric, cell.low, cell.high),
        f"{cell.num_samples:,}",
        _spread(row.metric, cell),
    )


def _spread(metric: str, cell: Cell) -> str:
    """The seeds, and the standard deviation over them, or over the trainings of one."""
    if cell.deviation is not None:
        return f"{len(cell.seeds)}: ± {number(metric, cell.deviation)}"
    if cell.runs is not None:
        return f"{cell.seeds[0]}; all trainings {number(metric, cell.runs[0])} ± {number(metric, cell.runs[1])}"
    return str(cell.seeds[0])


def _published(table: TaskTable) -> ScoreRows:
    return [
        (
            SOURCE,
            one.name,
            one.evaluator,
            one.source,
            "top1",
            f"{100 * one.value:.2f} %",
            *"---",
        )
        for one in published_of(table)
    ]


def further_metrics(found: list[Scores]) -> list[str]:
    """The names of what is recorded beside the headlines."""
    names = {row.metric for scores in found for table in scores.tables for row in table.rows}
    return sorted(names - set(HEADLINES), key=lambda name: (is_oracle(name), name))


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
    from pipeline.records.score import ResultFilter

    task, evaluator, metric, step = filters
    wanted = job.ScoreQuery(runs, ResultFilter(task, evaluator), metric, step)
    if out is not None:
        job.check_out(out)
    found = job.find_scores(store, wanted)
    num_rows = job.write_scores(found, out) if out is not None else 0
    result = {"workspace": store.uri} | job.scores_json(found, wanted) | ({"out": str(out)} if out else {})

    def show() -> None:
        if out is not None:
            print_text(f"{num_rows} scores in {out}")
            return
        for title, rows in printed(found, wanted):
            print_table(title, SCORE_COLUMNS, rows)
        more = further_metrics(found) if metric is None else []
        if more:
            print_text(f"also recorded: {', '.join(more)} (--metric NAME, or --metric all)")

    print_result(as_json, result, show)


def _compare(
    store: Store,
    names: tuple[str, str],
    metric: str | None,
    task: str | None,
    evaluator: str | None,
    as_json: bool,
) -> None:
    from pipeline.records.score import ResultFilter

    found = compare_named(store, *names, metric, ResultFilter(task, evaluator))
    require_lines(found)

    def show() -> None:
        print_table(f"A: {found.a.name}, B: {found.b.name}", COLUMNS, comparison_rows(found))
        for line in found.lines:
            words = line.comparison.sentence(found.a.name, found.b.name)
            print_text(f"{line.key.evaluator} on {line.key.task}: {words}")
        if found.not_compared:
            columns = ("task", "evaluator", "seeds", "why")
            print_table("Not compared", columns, reason_rows(found))

    print_result(as_json, {"workspace": store.uri} | comparison_json(found), show)


if __name__ == "__main__":
    main(scores)
