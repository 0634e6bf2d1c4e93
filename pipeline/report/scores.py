"""Join evaluation results with the checkpoints of one run: results know weights by digest alone.

A digest that is a checkpoint's gives the checkpoint's step; step 0 is the untrained network. The word PIXELS instead
of a digest is the other baseline; it is kept where this run has results of the same evaluator, task and data.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.digests import canonical_json
from pipeline.records.run import CheckpointCard
from pipeline.records.score import PIXELS, EvaluationResult, Score

Baseline = Literal["pixels", "untrained"]
_SCORES_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("evaluator", pa.string()),
        ("dataset", pa.string()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_samples", pa.int64()),
        ("seed", pa.int64()),
        ("settings", pa.string()),
        ("protocol_version", pa.int64()),
        ("train_digest", pa.string()),
        ("test_digest", pa.string()),
        ("baseline", pa.string()),
        ("evaluation_id", pa.string()),
        ("weights_digest", pa.string()),
    ]
)


@dataclass(frozen=True)
class ScoredResult:
    """A result with the step its weights belong to (None for pixels)."""

    result: EvaluationResult
    step: int | None
    baseline: Baseline | None


def join_results(
    checkpoints: Iterable[CheckpointCard], results: Iterable[EvaluationResult]
) -> tuple[ScoredResult, ...]:
    """The *results* that belong to the run of *checkpoints*, each with its step; other runs' are left out."""
    results = list(results)
    steps: dict[str, list[int]] = {}
    for card in checkpoints:
        steps.setdefault(card.weights.sha256, []).append(card.step)
    own = [
        ScoredResult(result, step, "untrained" if step == 0 else None)
        for result in results
        for step in steps.get(result.key.weights_digest, [])
    ]
    judged = {_what_is_judged(joined.result) for joined in own}
    pixels = [
        ScoredResult(result, None, "pixels")
        for result in results
        if result.key.weights_digest == PIXELS and _what_is_judged(result) in judged
    ]
    return tuple(own + pixels)


def _what_is_judged(result: EvaluationResult) -> tuple[str, str, tuple[str, ...]]:
    return result.key.evaluator, result.key.task, result.key.dataset_digests


def score_rows(run: str, joined: Iterable[ScoredResult]) -> tuple[Score, ...]:
    """One Score per metric of each result, in an order that depends on nothing but their content."""
    rows = [row for entry in joined for row in _rows_of(run, entry)]
    return tuple(sorted(rows, key=_order))


def _rows_of(run: str, joined: ScoredResult) -> Iterable[Score]:
    key = joined.result.key
    for metric in joined.result.metrics:
        yield Score(
            run=run,
            evaluator=key.evaluator,
            dataset=key.task,
            step=joined.step,
            metric=metric.name,
            value=metric.value,
            low=metric.low,
            high=metric.high,
            num_samples=joined.result.num_samples,
            seed=key.seed,
            settings=canonical_json(key.settings),
            protocol_version=key.protocol_version,
            train_digest=key.dataset_digests[0],
            test_digest=key.dataset_digests[-1],
            baseline=joined.baseline,
            evaluation_id=joined.result.id,
            weights_digest=key.weights_digest,
        )


def _order(row: Score) -> tuple[str, str, str, int, int, str]:
    step = -1 if row.step is None else row.step  # pixels, then untrained, then the checkpoints
    return row.dataset, row.evaluator, row.metric, step, row.seed, row.evaluation_id


def scores_table(scores: Iterable[Score]) -> pa.Table:
    """Every field of every Score, a row for each."""
    return pa.Table.from_pylist([row.model_dump(mode="json") for row in scores], schema=_SCORES_SCHEMA)


def scores_parquet(scores: Iterable[Score]) -> bytes:
    """``scores.parquet``: every field of every Score; ``pandas.read_parquet(path)`` reads it."""
    sink = io.BytesIO()
    pq.write_table(scores_table(scores), sink, compression="zstd")
    return sink.getvalue()
