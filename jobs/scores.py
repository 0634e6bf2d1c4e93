"""``vitpipe scores``: what was measured, of which weights, with which certainty; or which of two weights is better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.base.console import print_result, print_table, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Evaluator, Json, Task, Workspace, open_workspace
from pipeline.base.errors import InputError
from pipeline.base.store.protocol import Store
from pipeline.evaluate.comparison import (
    ComparisonRow,
    ComparisonTable,
    compare_named,
    comparison_json,
    require_rows,
    side_text,
)
from pipeline.evaluate.recipe import settings_summary
from pipeline.records.evaluators import is_headline
from pipeline.records.score import ResultFilter
from pipeline.report.formatting import ORACLE_WORDS, interval, is_oracle, number, probability_text
from pipeline.report.query import (
    ScoreQuery,
    Scores,
    cells_of,
    check_out,
    find_scores,
    scores_json,
    wants_metric,
    write_scores,
)
from pipeline.report.tables import SOURCE, Cell, ScoreRow, TaskTable, published_of

_COLUMNS = (
    "task",
    "evaluator",
    "metric",
    "A",
    "B",
    "B - A",
    "95 % interval",
    "B better",
    "p",
    "p (Holm)",
    "n",
    "seeds",
)
_REASON_COLUMNS = ("task", "evaluator", "seeds", "why")
Rows = list[tuple[str, ...]]
SCORE_COLUMNS = ("run", "of", "evaluator", "settings", "metric", "value", "95 % interval", "n", "seeds")
_SUMMARY_COLUMNS = ("task", "evaluator", "of", "metric", "value", "95 % interval", "n", "seed")
_BASELINE_ORDER = {"pixels": 0, "untrained": 1}  # checkpoints follow


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
    store = open_workspace(workspace, endpoint)
    only = ResultFilter(task, evaluator)
    if compare:
        options = {"a RUN": runs, "--step": step is not None, "--out": out}
        unwanted = [name for name, value in options.items() if value]
        if unwanted:
            raise InputError(f"--compare takes no {unwanted[0]}", "write RUN@STEP RUN@STEP behind --compare")
        _compare(store, compare, metric, only, as_json)
    else:
        _show(store, ScoreQuery(tuple(runs or ()), only, metric, step), out, as_json)


def _show(store: Store, query: ScoreQuery, out: Path | None, as_json: bool) -> None:
    if out is not None:
        check_out(out)
    scores = find_scores(store, query)
    num_rows = write_scores(scores, out) if out is not None else 0
    result = {"workspace": store.uri} | scores_json(scores, query) | ({"out": str(out)} if out else {})

    def show() -> None:
        if out is not None:
            print_text(f"{num_rows} scores in {out}")
            return
        for title, rows in score_tables(scores, query):
            print_table(title, SCORE_COLUMNS, rows)
        further = further_metrics(scores) if query.metric is None else []
        if further:
            print_text(f"also recorded: {', '.join(further)} (--metric NAME, or --metric all)")

    print_result(as_json, result, show)


def _compare(store: Store, names: tuple[str, str], metric: str | None, only: ResultFilter, as_json: bool) -> None:
    table = compare_named(store, *names, metric, only)
    require_rows(table)

    def show() -> None:
        print_table(f"A: {table.a.name}, B: {table.b.name}", _COLUMNS, map(_comparison_row, table.rows))
        for line in table.rows:
            sentence = line.comparison.sentence(table.a.name, table.b.name)
            print_text(f"{line.key.evaluator} on {line.key.task}: {sentence}")
        if table.incomparable:
            print_table("Not compared", _REASON_COLUMNS, _reason_rows(table))

    print_result(as_json, {"workspace": store.uri} | comparison_json(table), show)


def _comparison_row(line: ComparisonRow) -> tuple[str, ...]:
    comparison = line.comparison
    scale, digits, sign = (100, 2, " %") if comparison.in_points else (1, 4, "")
    change, low, high = (
        f"{scale * value:+.{digits}f}" for value in (comparison.difference, comparison.low, comparison.high)
    )
    settings = settings_summary(line.key)
    return (
        line.key.task,
        f"{line.key.evaluator} ({settings})" if settings else line.key.evaluator,
        comparison.metric,
        f"{scale * comparison.value_a:.{digits}f}{sign}",
        f"{scale * comparison.value_b:.{digits}f}{sign}",
        change,
        f"[{low}, {high}]",
        probability_text(comparison.probability),
        f"{comparison.p:.2g}",
        f"{line.p_holm:.2g}",
        f"{comparison.num_samples:,}",
        ",".join(str(seed) for seed in line.seeds),
    )


def _reason_rows(table: ComparisonTable) -> Rows:
    return [
        (
            row.key.task,
            f"{row.key.evaluator} ({settings_summary(row.key)})",
            ",".join(str(seed) for seed in row.seeds),
            f"{side_text(table, row)}{row.reason}",
        )
        for row in table.incomparable
    ]


def score_tables(scores: list[Scores], query: ScoreQuery) -> list[tuple[str, Rows]]:
    """One table for each task: (title, rows of SCORE_COLUMNS); published values stand last."""
    tasks = sorted({table.task for entry in scores for table in entry.tables})
    by_task: dict[str, Rows] = {task: [] for task in tasks}
    published: dict[str, Rows] = {}
    for entry in scores:
        for table in entry.tables:
            for row in table.rows:
                if _is_shown(row, query.metric):
                    cells = ((of, cell) for of, cell in cells_of(row) if cell is not None)
                    by_task[table.task] += [_score_row(entry.name, of, row, cell) for of, cell in cells]
            if wants_metric("top1", query.metric):
                published[table.task] = published.get(table.task) or _published_rows(table)
    return [(task, rows + published.get(task, [])) for task, rows in by_task.items() if rows]


def _is_shown(row: ScoreRow, metric: str | None) -> bool:
    return row.is_headline if metric is None else wants_metric(row.metric, metric)


def _score_row(name: str, of: str, row: ScoreRow, cell: Cell) -> tuple[str, ...]:
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
    """The seeds with the standard deviation over them; of a single seed, that over its trainings."""
    if cell.deviation is not None:
        return f"{len(cell.seeds)}: ± {number(metric, cell.deviation)}"
    if cell.runs is not None:
        return f"{cell.seeds[0]}; all trainings {number(metric, cell.runs[0])} ± {number(metric, cell.runs[1])}"
    return str(cell.seeds[0])


def _published_rows(table: TaskTable) -> Rows:
    return [
        (SOURCE, value.name, value.evaluator, value.source, "top1", f"{100 * value.value:.2f} %", *"---")
        for value in published_of(table)
    ]


def further_metrics(scores: list[Scores]) -> list[str]:
    """The names of what is recorded beside the headlines."""
    names = {row.metric for entry in scores for table in entry.tables for row in table.further}
    return sorted(names, key=lambda name: (is_oracle(name), name))


def print_summary(summary: dict[str, Any], as_json: bool) -> None:
    """The summary of a report: its scores, by what each is judged by; the last checkpoint against the one before it,
    and where the page is.
    """

    def show() -> None:
        _print_scores(summary)
        print_text(f"\nreport: {summary['report']}")

    print_result(as_json, summary, show)


def _print_scores(summary: dict[str, Any]) -> None:
    rows = [
        (
            score["dataset"],
            score["evaluator"],
            score["baseline"] or f"step {score['step']}",
            score["metric"],
            number(score["metric"], score["value"]),
            interval(score["metric"], score["low"], score["high"]),
            str(score["num_samples"]),
            str(score["seed"]),
        )
        for score in sorted(summary["scores"], key=_reading_order)
        if is_headline(score["evaluator"], score["metric"])
    ]
    print_table("Scores", _SUMMARY_COLUMNS, rows)
    for comparison in summary["last_against_the_one_before"]:
        print_text(f"{comparison['task']}, {comparison['label']}: {comparison['sentence']}")


def _reading_order(score: dict[str, Any]) -> tuple[Any, ...]:
    baseline = _BASELINE_ORDER.get(score["baseline"], len(_BASELINE_ORDER))
    return score["dataset"], score["evaluator"], baseline, score["step"] or 0, score["seed"]


if __name__ == "__main__":
    main(scores)
