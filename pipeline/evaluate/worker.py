"""Perform one evaluation: compute it, store what belongs to it, record the result. Runs in a worker."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from safetensors.numpy import save

from pipeline.base.digests import canonical_json, sha256_hex
from pipeline.base.retry import RetryPolicy, with_retry
from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import wanted_specs
from pipeline.evaluate.evaluators.registry import EVALUATORS
from pipeline.evaluate.features.extract import compute_parts, has_features, missing_parts, prepare_features
from pipeline.evaluate.features.storage import FeatureSpec
from pipeline.evaluate.metrics.classification import measured
from pipeline.evaluate.metrics.outcomes import EvalOutput, pack_outcomes
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.records.score import ARTEFACTS, OUTCOMES, EvaluationResult, file_key, result_key


def run_evaluation(
    workspace: Store, planned: PlannedEvaluation, generation: int = 0, patience: RetryPolicy | None = None
) -> bool:
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
    return record(workspace, result, files, generation, patience or RetryPolicy(0))


def record(
    workspace: Store, result: EvaluationResult, files: dict[str, bytes], generation: int, patience: RetryPolicy
) -> bool:
    """Store *files*, by name, and record the result that lists them; False when there is a result already."""
    for name, data in files.items():
        key = file_key(result.id, name, result.files[name])
        with_retry(workspace, patience, key, lambda key=key, data=data: workspace.put(key, data))  # type: ignore[misc]
    key = result_key(result.id, generation)
    return with_retry(workspace, patience, key, lambda: workspace.put_if_absent(key, result.to_json()))


def _files(finding: EvalOutput) -> dict[str, bytes]:
    artefacts = bytes(save(finding.artefacts)) if finding.artefacts else b""
    return {OUTCOMES: pack_outcomes(finding.outcomes), ARTEFACTS: artefacts}


Seen = tuple[str, str]
Wanted = dict[tuple[Seen, str], dict[FeatureSpec, None]]


@dataclass(frozen=True)
class FeatureJob:
    """Features of *subject* on *dataset*; *part*: one part of them, None: whatever is missing, and the card."""

    subject: ModelRef
    dataset: str
    dataset_digest: str
    specs: tuple[FeatureSpec, ...]
    part: int | None = None

    @property
    def id(self) -> tuple[Seen, str, tuple[FeatureSpec, ...]]:
        """Tells equal ones; the same for all parts."""
        return _seen(self.subject), self.dataset_digest, self.specs


def preparations(planned: Iterable[PlannedEvaluation]) -> dict[str, tuple[FeatureJob, ...]]:
    """What each evaluation wants to be there before it begins, by its id: for those that share, the same."""
    items = list(planned)
    known: dict[tuple[str, str, bool], tuple[FeatureSpec, ...]] = {}
    wanted: Wanted = defaultdict(dict)
    sharing: list[PlannedEvaluation] = []
    for item in items:
        kind = (item.key.evaluator, canonical_json(item.key.settings), item.subject.is_pixels)
        specs = known[kind] if kind in known else known.setdefault(kind, wanted_specs(item))
        for digest in item.key.dataset_digests if specs else ():
            wanted[_seen(item.subject), digest] |= dict.fromkeys(specs)
        sharing += [item] if specs else []
    return {item.id: tuple(_both(item, wanted)) for item in sharing}


def _both(item: PlannedEvaluation, wanted: Wanted) -> Iterable[FeatureJob]:
    names = (item.task.train, item.task.test)
    for name, digest in zip(names, item.key.dataset_digests, strict=True):
        yield FeatureJob(item.subject, name, digest, tuple(wanted[_seen(item.subject), digest]))


def _seen(subject: ModelRef) -> Seen:
    """Weights, and how their input is made: few-shot has its own way."""
    return subject.weights_digest, canonical_json(subject.transform)


def is_prepared(workspace: Store, preparation: FeatureJob) -> bool:
    """True when it is there."""
    subject, digest = preparation.subject, preparation.dataset_digest
    return all(has_features(workspace, subject, digest, spec) for spec in preparation.specs)


def parts_of(workspace: Store, preparation: FeatureJob) -> list[int]:
    """The parts that are missing."""
    return missing_parts(workspace, preparation.subject, preparation.dataset, preparation.specs)


def run_feature_job(workspace: Store, preparation: FeatureJob) -> None:
    """Make it, or its part. Runs in a worker."""
    subject, dataset, specs = preparation.subject, preparation.dataset, preparation.specs
    if preparation.part is None:
        prepare_features(workspace, subject, dataset, specs)
    else:
        compute_parts(workspace, subject, dataset, specs, [preparation.part])
