"""Scores by run, task, evaluator, metric and step: as stored, as tables, as JSON, parquet or CSV."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.base.errors import InputError, StoreAccessError
from pipeline.base.store.protocol import Store
from pipeline.records.imported import ImportedCard, list_imported_cards
from pipeline.records.run import CheckpointCard, list_checkpoint_cards, list_retired_cards, list_runs, read_run_card
from pipeline.records.score import PIXELS, EvaluationResult, ResultFilter, Score, list_results
from pipeline.report.formatting import ORACLE_WORDS, is_oracle
from pipeline.report.scores import ScoredResult, join_results, score_rows, scores_table
from pipeline.report.tables import Cell, ScoreRow, TaskTable, task_tables

_ALL_METRICS = "all"  # instead of the name of a metric


@dataclass(frozen=True)
class ScoreQuery:
    """Which scores; None: all, and of metrics the headline of each evaluation.

    With *step*, the baselines stay, since a score is read against them.
    """

    runs: tuple[str, ...] = ()
    only: ResultFilter = field(default_factory=ResultFilter)
    metric: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of one run, or of weights that belong to no run, as they are stored and as tables."""

    name: str
    rows: tuple[Score, ...]
    tables: tuple[TaskTable, ...]


def find_scores(workspace: Store, query: ScoreQuery) -> list[Scores]:
    """What is recorded of the runs of *query*, else of everything in the workspace.

    Raises InputError for an unknown run, and when no score is left, naming what there is.
    """
    results = list_results(workspace)
    imported = {card.name: card for card in list_imported_cards(workspace)}
    runs = list_runs(workspace)
    chosen = query.runs or runs
    cards = {run: _cards(workspace, run) for run in chosen if run in runs or run not in imported}
    joined_by_name = [(run, join_results(cards[run], results)) for run in cards]
    joined_by_name += [
        (name, _of_imported(card, results)) for name, card in imported.items() if name in query.runs or not query.runs
    ]
    if not query.runs:
        joined_by_name += _of_no_name(results, cards.values(), imported.values())
    scores = [_scores(name, joined, query) for name, joined in joined_by_name]
    matches = [entry for entry in scores if entry.rows]
    if not matches:
        raise _nothing([result for _, joined in joined_by_name for result in joined], query)
    return matches


def _cards(workspace: Store, run: str) -> list[CheckpointCard]:
    read_run_card(workspace, run)
    return [*list_checkpoint_cards(workspace, run), *list_retired_cards(workspace, run)]


def _of_imported(card: ImportedCard, results: Iterable[EvaluationResult]) -> tuple[ScoredResult, ...]:
    return tuple(
        ScoredResult(result, None, None) for result in results if result.key.weights_digest == card.weights.sha256
    )


def _of_no_name(
    results: Iterable[EvaluationResult], cards: Iterable[list[CheckpointCard]], imported: Iterable[ImportedCard]
) -> list[tuple[str, tuple[ScoredResult, ...]]]:
    """Results of weights whose run is gone, by their digest."""
    known = {card.weights.sha256 for run in cards for card in run} | {card.weights.sha256 for card in imported}
    alone: dict[str, list[ScoredResult]] = {}
    for result in results:
        if result.key.weights_digest not in known | {PIXELS}:
            alone.setdefault(result.key.weights_digest, []).append(ScoredResult(result, None, None))
    return [(f"weights {digest[:12]}", tuple(joined)) for digest, joined in sorted(alone.items())]


def _scores(name: str, joined: tuple[ScoredResult, ...], query: ScoreQuery) -> Scores:
    selected = tuple(entry for entry in joined if query.only.wants(entry.result.key) and _is_of(entry, query.step))
    if all(entry.baseline for entry in selected):  # only baselines, and nothing to compare with them
        selected = selected if query.step in (None, 0) else ()
    rows = tuple(row for row in score_rows(name, selected) if wants_metric(row.metric, query.metric))
    return Scores(name, rows, task_tables(selected))


def _is_of(entry: ScoredResult, step: int | None) -> bool:
    return step is None or entry.step == step or entry.baseline is not None


def wants_metric(metric: str, requested: str | None) -> bool:
    """True for the *requested* metric; without one, for every metric."""
    return requested in (None, _ALL_METRICS) or metric == requested


def _nothing(joined: list[ScoredResult], query: ScoreQuery) -> InputError:
    """Why nothing is left, and what is recorded."""
    if not joined:
        return InputError("no evaluation is recorded", "evaluate a run with: vitpipe evaluate RUN -w WORKSPACE")
    keys = [entry.result.key for entry in joined]
    recorded = {
        "task": {key.task for key in keys},
        "evaluator": {key.evaluator for key in keys},
        "metric": {metric.name for entry in joined for metric in entry.result.metrics},
        "step": {str(entry.step) for entry in joined if entry.step is not None},
    }
    filters = {"task": query.only.task, "evaluator": query.only.evaluator, "metric": query.metric, "step": query.step}
    filter_text = " ".join(f"--{name} {value}" for name, value in filters.items() if value is not None)
    names = [name for name, value in filters.items() if value is not None]
    listed = "; ".join(f"{name}s: {', '.join(sorted(recorded[name], key=_by_number))}" for name in names)
    return InputError(f"nothing recorded matches {filter_text}" if filter_text else "no score is recorded", listed)


def _by_number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (-1, text)


def cells_of(row: ScoreRow) -> list[tuple[str, Cell | None]]:
    """The values of a row, each with whose it is: the baselines first."""
    steps = [(f"step {step}", cell) for step, cell in sorted(row.steps.items())]
    return [("raw pixels", row.pixels), ("untrained", row.untrained), ("imported", row.imported), *steps]


def scores_json(scores: list[Scores], query: ScoreQuery) -> dict[str, Any]:
    """Plain values: every score, those apart that were chosen on test data, and the means over seeds."""
    rows = [row.model_dump(mode="json") for entry in scores for row in entry.rows]
    return {
        "scores": [row for row in rows if not is_oracle(row["metric"])],
        "no_results": {"what": ORACLE_WORDS, "scores": [row for row in rows if is_oracle(row["metric"])]},
        "means": [
            _mean_json(entry.name, of, row, cell)
            for entry in scores
            for table in entry.tables
            for row in table.rows
            if not is_oracle(row.metric) and wants_metric(row.metric, query.metric)
            for of, cell in cells_of(row)
            if cell is not None
        ],
    }


def _mean_json(name: str, of: str, row: ScoreRow, cell: Cell) -> dict[str, Any]:
    return {
        "run": name,
        "of": of,
        "task": row.task,
        "evaluator": row.evaluator,
        "settings": row.key.settings,
        "protocol_version": row.key.protocol_version,
        "metric": row.metric,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "std_over_seeds": cell.deviation,
        "seeds": list(cell.seeds),
        "num_samples": cell.num_samples,
    }


def check_out(out: Path) -> None:
    """Raise InputError for a file of a kind that is not written."""
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: its name must end with .parquet or .csv")


def write_scores(scores: list[Scores], out: Path) -> int:
    """Write every score, one row for each metric of each evaluation; the number of rows."""
    table = scores_table(row for entry in scores for row in entry.rows)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".csv":
            pa_csv.write_csv(table, out)
        else:
            pq.write_table(table, out, compression="zstd")
    except OSError as error:
        raise StoreAccessError(f"{out} cannot be written: {error.strerror or error}", "choose another --out") from None
    return int(table.num_rows)
