"""Scores and evaluation results.

``evaluations/<id>/result.json`` is create-only. It knows weights by digest alone; which run and step they belong to
is found by joining with the checkpoint cards, so equal weights are never evaluated twice.
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa

from pipeline.base.digests import fingerprint
from pipeline.base.store.protocol import Store
from pipeline.records.record import Record, parse_record

PIXELS = "pixels"  # stands for a weights digest where the "features" are the raw pixels
ARTEFACTS = "artefacts.safetensors"
OUTCOMES = "outcomes.parquet"

# One row per test sample, for paired comparisons.
OUTCOMES_SCHEMA = pa.schema(
    [("key", pa.string()), ("label", pa.int32()), ("prediction", pa.int32()), ("probability", pa.float32())]
)


class EvaluationKey(Record):
    """All that an evaluation's result depends on."""

    weights_digest: str
    evaluator: str
    protocol_version: int
    task: str
    dataset_digests: tuple[str, ...]
    transform: dict[str, Any]
    settings: dict[str, Any]
    seed: int

    @property
    def id(self) -> str:
        """Hex sha256 of all fields but the task's name, which is only a name."""
        return fingerprint(self.model_dump(mode="json", exclude={"task"}))


class Metric(Record):
    """One measured value with its 95 % interval over the test samples."""

    name: str
    value: float
    low: float
    high: float


class EvaluationResult(Record):
    """What one evaluation found. ``chosen`` are hyper-parameters, chosen on the validation part."""

    schema_version: Literal[1] = 1
    id: str
    key: EvaluationKey
    metrics: tuple[Metric, ...]
    num_samples: int
    chosen: dict[str, Any]
    seconds: float
    files: dict[str, str]  # name -> sha256 of what stands beside the result


class Score(Record):
    """One row of ``scores.parquet``: a metric of an evaluation, joined with the run and step of its weights."""

    run: str
    evaluator: str
    dataset: str
    step: int | None
    metric: str
    value: float
    low: float
    high: float
    num_samples: int
    seed: int
    baseline: Literal["pixels", "untrained"] | None
    evaluation_id: str
    weights_digest: str


def result_key(evaluation_id: str) -> str:
    """Where the result of an evaluation stands in a workspace."""
    return f"evaluations/{evaluation_id}/result.json"


def list_results(workspace: Store) -> list[EvaluationResult]:
    """All recorded results, by id."""
    keys = [info.key for info in workspace.list("evaluations/") if info.key.endswith("/result.json")]
    return [parse_record(EvaluationResult, workspace.read(key), key) for key in keys]
