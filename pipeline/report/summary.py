"""``summary.json``: what machines read of a report. It is written last; without it the report does not exist."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from pipeline.records.score import Score
from pipeline.report.collect import Collected
from pipeline.report.progressed import Progressed
from pipeline.report.verdict import Verdict
from pipeline.report.words import ORACLE_WORDS, is_oracle

_SCORE_FIELDS = (
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


def images_per_second(collected: Collected) -> float | None:
    """The median over the logged rows; None when nothing was logged."""
    rows = collected.training.rows
    return median(row.images_per_second for row in rows) if rows else None


def pretrain_seconds(collected: Collected) -> float:
    """Wall time of the pretraining stage where it was taken, else the total of the logged rows."""
    return collected.seconds.get("pretrain", sum(row.seconds for row in collected.training.rows))


def build_summary(
    collected: Collected,
    verdicts: tuple[Verdict, ...],
    progressed: tuple[Progressed, ...],
    *,
    code_version: str,
    page: str,
) -> dict[str, Any]:
    """The summary as a JSON object. *page* is where ``report.html`` stands.

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
            asdict(one) | {"seeds": list(one.seeds), "answer": one.answer} for one in progressed
        ],
        "code_version": code_version,
        "report": page,
    }


def _score(row: Score) -> dict[str, Any]:
    return row.model_dump(mode="json", include=set(_SCORE_FIELDS))
