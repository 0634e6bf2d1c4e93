"""The entry of the report stage: collect, render, put. The page and the table first, the summary last."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pipeline.base.progress import Progress
from pipeline.base.store.protocol import Store
from pipeline.records.score import Score
from pipeline.report.collect import RunData, collect, images_per_second, pretrain_seconds
from pipeline.report.formatting import ORACLE_WORDS, is_oracle
from pipeline.report.page import render_page
from pipeline.report.scores import scores_parquet
from pipeline.report.tables import task_tables
from pipeline.report.verdicts import BaselineVerdict, CheckpointComparison, verdicts

PAGE = "report.html"
TABLE = "scores.parquet"
SUMMARY = "summary.json"  # written last: it makes the report exist
_SCORE_FIELDS = (  # of a score, in the summary
    "evaluator",
    "dataset",
    "step",
    "metric",
    "value",
    "low",
    "high",
    "num_samples",
    "seed",
    "baseline",
)


def report_prefix(name: str) -> str:
    """The folder of report *name* in a workspace."""
    return f"reports/{name}"


def build_report(
    workspace: Store,
    run: str,
    *,
    name: str,
    code_version: str,
    progress: Progress,
    comparisons: tuple[CheckpointComparison, ...] = (),
) -> dict[str, Any]:
    """Write ``reports/<name>/`` for *run* and return its summary. A report of that name is replaced.

    *comparisons*: the last checkpoint against the one before it, made where outcomes can be compared.
    Raises InputError when there is no such run, DamageError when something stored is not what its card says.
    """
    progress.start("report", 3)
    collected = collect(workspace, run)
    tables = task_tables(collected.joined)
    answers = verdicts(tables, collected.last_step)
    progress.advance(note="read")
    page = render_page(collected, tables, answers, comparisons, name=name, code_version=code_version)
    progress.advance(note="rendered")
    prefix = report_prefix(name)
    workspace.delete(f"{prefix}/{SUMMARY}")  # an older report of that name stops existing before its parts change
    workspace.put(f"{prefix}/{PAGE}", page.encode())
    workspace.put(f"{prefix}/{TABLE}", scores_parquet(collected.scores))
    local = workspace.local_path(f"{prefix}/{PAGE}")
    location = str(local) if local is not None else f"{workspace.uri}/{prefix}/{PAGE}"
    summary = _summary(collected, answers, comparisons, code_version=code_version, page=location)
    workspace.put(f"{prefix}/{SUMMARY}", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    progress.advance(note="stored")
    progress.finish(location)
    return summary


def _summary(
    collected: RunData,
    verdicts: tuple[BaselineVerdict, ...],
    comparisons: tuple[CheckpointComparison, ...],
    *,
    code_version: str,
    page: str,
) -> dict[str, Any]:
    """The summary as a JSON object. *page*: path or URI of ``report.html``.

    ``last_against_the_one_before``: is the last checkpoint better, with what probability. ``no_results``: values that
    were chosen on test data, kept apart from the scores.
    """
    dataset = collected.dataset
    return {
        "schema_version": 1,
        "dataset": {
            "name": collected.run.dataset_name,
            "digest": collected.run.dataset_digest,
            "samples": dataset.num_samples if dataset else None,
            "rejected": dataset.num_rejected if dataset else None,
        },
        "run": {
            "name": collected.run.name,
            "losses": [[row.step, row.loss] for row in collected.training.rows],
            "images_per_second": images_per_second(collected),
            "seconds": pretrain_seconds(collected),
        },
        "seconds": collected.seconds,
        "scores": [_score(row) for row in collected.scores if not is_oracle(row.metric)],
        "no_results": {
            "what": ORACLE_WORDS,
            "scores": [_score(row) for row in collected.scores if is_oracle(row.metric)],
        },
        "verdicts": [
            {
                "dataset": verdict.task,
                "step": verdict.step,
                "beats_both_baselines": verdict.answer,
                "intervals_overlap_with": list(verdict.overlapping),
                "sentence": verdict.sentence,
            }
            for verdict in verdicts
        ],
        "last_against_the_one_before": [
            asdict(comparison) | {"seeds": list(comparison.seeds), "answer": comparison.answer}
            for comparison in comparisons
        ],
        "code_version": code_version,
        "report": page,
    }


def _score(row: Score) -> dict[str, Any]:
    return row.model_dump(mode="json", include=set(_SCORE_FIELDS))
