"""Perform one evaluation: claim it, compute it, store what belongs to it, record the result."""

from __future__ import annotations

import io
import time

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import FailedError, VitpipeError
from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.evaluators import EVALUATORS, Finding
from pipeline.evaluate.ledger import Owner, claim, record, record_failure
from pipeline.evaluate.metrics import top1
from pipeline.records.score import ARTEFACTS, OUTCOMES, OUTCOMES_SCHEMA, EvaluationResult


def perform(workspace: Store, planned: Planned, owner: Owner) -> bool:
    """Evaluate; False when somebody else is at it. Raises FailedError, and notes why, when it cannot be done."""
    number = claim(workspace, planned.key.id, owner)
    if number is None:
        return False
    started = time.monotonic()
    try:
        finding = EVALUATORS[planned.key.evaluator](workspace, planned)
        files = {name: data for name, data in _files(finding).items() if data}
        for name, data in files.items():
            workspace.put(f"evaluations/{planned.key.id}/{name}", data)
        metrics = () if planned.key.evaluator == "inspect" else (top1(finding.outcomes),)
        result = EvaluationResult(
            id=planned.key.id,
            key=planned.key,
            metrics=metrics,
            num_samples=len(finding.outcomes.keys),
            chosen=finding.chosen,
            seconds=time.monotonic() - started,
            files={name: sha256_hex(data) for name, data in files.items()},
        )
        record(workspace, result)
    except Exception as error:
        reason = str(error) if isinstance(error, VitpipeError) else f"{type(error).__name__}: {error}"
        record_failure(workspace, planned.key.id, number, reason)
        raise FailedError(f"{planned.name}: {reason}") from error
    return True


def _files(finding: Finding) -> dict[str, bytes]:
    outcomes = finding.outcomes
    columns = [list(outcomes.keys), outcomes.labels, outcomes.predictions, outcomes.probabilities]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, OUTCOMES_SCHEMA, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=OUTCOMES_SCHEMA), sink, compression="zstd")
    return {OUTCOMES: sink.getvalue(), ARTEFACTS: bytes(save(finding.artefacts)) if finding.artefacts else b""}
