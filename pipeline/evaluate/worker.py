"""What a worker does: compute features that evaluations share (FeatureJob), or run one evaluation and record it.

Imports no ray, and holds nothing open between two calls.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from safetensors.numpy import save

from pipeline.base.digests import canonical_json, sha256_hex
from pipeline.base.retry import RetryPolicy, with_retry
from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.registry import REGISTRY
from pipeline.evaluate.features.extract import compute_parts, has_features, missing_parts, prepare_features
from pipeline.evaluate.features.storage import FeatureSpec
from pipeline.evaluate.metrics.classification import compute_metrics
from pipeline.evaluate.metrics.outcomes import EvalOutput, pack_outcomes
from pipeline.evaluate.model_ref import ModelRef
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.records.evaluators import EVALUATORS
from pipeline.records.score import ARTEFACTS, OUTCOMES, EvaluationResult, Metric, file_key, result_key


def run_evaluation(
    workspace: Store, planned: PlannedEvaluation, generation: int = 0, retry_policy: RetryPolicy | None = None
) -> bool:
    """Compute the evaluation and record it; False when a result is recorded already, which then stays.

    Raises whatever went wrong.
    """
    started = time.monotonic()
    output = REGISTRY[planned.key.evaluator].run(workspace, planned)
    files = {name: data for name, data in _files_of(output).items() if data}
    metrics: tuple[Metric, ...] = ()
    if EVALUATORS[planned.key.evaluator].has_scores:
        metrics = (*compute_metrics(output.outcomes, output.num_classes), *output.metrics)
    result = EvaluationResult(
        id=planned.id,
        key=planned.key,
        metrics=metrics,
        num_samples=len(output.outcomes.keys),
        chosen=output.chosen,
        seconds=time.monotonic() - started,
        files={name: sha256_hex(data) for name, data in files.items()},
    )
    return record_result(workspace, result, files, generation, retry_policy or RetryPolicy(0))


def record_result(
    workspace: Store, result: EvaluationResult, files: dict[str, bytes], generation: int, retry_policy: RetryPolicy
) -> bool:
    """Store *files*, by name, then the result that lists them, create-only; False when there is a result already."""
    for name, data in files.items():
        key = file_key(result.id, name, result.files[name])
        with_retry(workspace, retry_policy, key, lambda key=key, data=data: workspace.put(key, data))  # type: ignore[misc]
    key = result_key(result.id, generation)
    return with_retry(workspace, retry_policy, key, lambda: workspace.put_if_absent(key, result.to_json()))


def _files_of(output: EvalOutput) -> dict[str, bytes]:
    artefacts = bytes(save(output.artefacts)) if output.artefacts else b""
    return {OUTCOMES: pack_outcomes(output.outcomes), ARTEFACTS: artefacts}


_InputId = tuple[str, str]  # the weights' digest, and the transform as canonical JSON: few-shot has its own transform


@dataclass(frozen=True)
class FeatureJob:
    """Compute features of a model on *dataset*; *part*: one part of them, None: whatever is missing, and the card."""

    model_ref: ModelRef
    dataset: str
    dataset_digest: str
    specs: tuple[FeatureSpec, ...]
    part: int | None = None

    @property
    def id(self) -> tuple[_InputId, str, tuple[FeatureSpec, ...]]:
        """Equal for jobs that compute the same features, and for all parts of a job."""
        return _input_id(self.model_ref), self.dataset_digest, self.specs


_SpecsByInput = dict[tuple[_InputId, str], dict[FeatureSpec, None]]  # the second key is the dataset's digest


def feature_jobs(planned: Iterable[PlannedEvaluation]) -> dict[str, tuple[FeatureJob, ...]]:
    """By an evaluation's id, the jobs whose features it needs; evaluations that share features have equal jobs."""
    known: dict[tuple[str, str, bool], tuple[FeatureSpec, ...]] = {}
    needed: _SpecsByInput = defaultdict(dict)
    sharing: list[PlannedEvaluation] = []
    for evaluation in planned:
        key, model_ref = evaluation.key, evaluation.model_ref
        kind = (key.evaluator, canonical_json(key.settings), model_ref.is_pixels)
        specs = known[kind] if kind in known else known.setdefault(kind, REGISTRY[key.evaluator].features(evaluation))
        for digest in key.dataset_digests if specs else ():
            needed[_input_id(model_ref), digest] |= dict.fromkeys(specs)
        sharing += [evaluation] if specs else []
    return {evaluation.id: tuple(_jobs_of(evaluation, needed)) for evaluation in sharing}


def _jobs_of(evaluation: PlannedEvaluation, needed: _SpecsByInput) -> Iterable[FeatureJob]:
    """A job for the training dataset, and one for the test dataset."""
    model_ref, names = evaluation.model_ref, (evaluation.task.train, evaluation.task.test)
    for name, digest in zip(names, evaluation.key.dataset_digests, strict=True):
        yield FeatureJob(model_ref, name, digest, tuple(needed[_input_id(model_ref), digest]))


def _input_id(model_ref: ModelRef) -> _InputId:
    return model_ref.weights_digest, canonical_json(model_ref.transform)


def is_feature_job_done(workspace: Store, job: FeatureJob) -> bool:
    """True when all of its features are stored."""
    return all(has_features(workspace, job.model_ref, job.dataset_digest, spec) for spec in job.specs)


def missing_feature_parts(workspace: Store, job: FeatureJob) -> list[int]:
    """The parts that are not stored yet."""
    return missing_parts(workspace, job.model_ref, job.dataset, job.specs)


def run_feature_job(workspace: Store, job: FeatureJob) -> None:
    """Compute and store the features of the job, or its part of them."""
    if job.part is None:
        prepare_features(workspace, job.model_ref, job.dataset, job.specs)
    else:
        compute_parts(workspace, job.model_ref, job.dataset, job.specs, [job.part])
