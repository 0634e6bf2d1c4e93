"""Scores as tables for people."""

from __future__ import annotations

from jobs.scores import Scores, Wanted, cells_of, wants_metric
from jobs.settings_words import settings_in_short
from pipeline.report.paper import SOURCE, published_of
from pipeline.report.tables import Cell, Row, TaskTable
from pipeline.report.words import HEADLINES, ORACLE_WORDS, interval, is_oracle, number

Rows = list[tuple[str, ...]]
COLUMNS = ("run", "of", "evaluator", "settings", "metric", "value", "95 % interval", "n", "seeds")


def printed(found: list[Scores], wanted: Wanted) -> list[tuple[str, Rows]]:
    """One table for each task: (title, rows of COLUMNS)."""
    tasks = sorted({table.task for scores in found for table in scores.tables})
    by_task: dict[str, Rows] = {task: [] for task in tasks}
    published: dict[str, Rows] = {}
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


def _is_printed(row: Row, wanted: str | None) -> bool:
    return row.is_headline if wanted is None else wants_metric(row.metric, wanted)


def _printed(name: str, of: str, row: Row, cell: Cell) -> tuple[str, ...]:
    metric = f"{row.metric}: {ORACLE_WORDS}" if is_oracle(row.metric) else row.metric
    return (
        name,
        of,
        row.key.evaluator,
        settings_in_short(row.key),
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


def _published(table: TaskTable) -> Rows:
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
