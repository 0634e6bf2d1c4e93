"""Perform one evaluation: compute it, store what belongs to it, record the result. Runs in a worker."""

from __future__ import annotations

import time

from safetensors.numpy import save

from pipeline.base.digests import sha256_hex
from pipeline.base.store import Store
from pipeline.evaluate.due import Planned
from pipeline.evaluate.evaluators import EVALUATORS
from pipeline.evaluate.finding import Finding
from pipeline.evaluate.ledger import patiently
from pipeline.evaluate.metrics import measured, pack_outcomes
from pipeline.records.score import ARTEFACTS, OUTCOMES, EvaluationResult, file_key, result_key
from pipeline.stream.waiting import Patience


def perform(workspace: Store, planned: Planned, generation: int = 0, patience: Patience | None = None) -> bool:
    """Evaluate and record; False when a result is recorded already, which then stands. Raises what went wrong."""
    started = time.monotonic()
    finding = EVALUATORS[planned.key.evaluator](workspace, planned)
    files = {name: data for name, data in _files(finding).items() if data}
    metrics = (
        ()
        if planned.key.evaluator == "inspect"
        else (*measured(finding.outcomes, finding.num_classes), *finding.metrics)
    )
    result = EvaluationResult(
        id=planned.id,
        key=planned.key,
        metrics=metrics,
        num_samples=len(finding.outcomes.keys),
        chosen=finding.chosen,
        seconds=time.monotonic() - started,
        files={name: sha256_hex(data) for name, data in files.items()},
    )
    return record(workspace, result, files, generation, patience or Patience(0))


def record(
    workspace: Store, result: EvaluationResult, files: dict[str, bytes], generation: int, patience: Patience
) -> bool:
    """Store *files*, by name, and record the result that lists them; False when there is a result already."""
    for name, data in files.items():
        key = file_key(result.id, name, result.files[name])
        patiently(workspace, patience, key, lambda key=key, data=data: workspace.put(key, data))  # type: ignore[misc]
    key = result_key(result.id, generation)
    return patiently(workspace, patience, key, lambda: workspace.put_if_absent(key, result.to_json()))


def _files(finding: Finding) -> dict[str, bytes]:
    artefacts = bytes(save(finding.artefacts)) if finding.artefacts else b""
    return {OUTCOMES: pack_outcomes(finding.outcomes), ARTEFACTS: artefacts}
