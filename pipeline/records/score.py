"""Scores and evaluation results.

``evaluations/<id>/result.json`` is create-only (``ledger.py`` draws the files beside it). It knows weights by digest
alone; a join with the checkpoint cards gives their run and step, so equal weights are never
evaluated twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import pyarrow as pa

from pipeline.base.digests import fingerprint
from pipeline.base.store.protocol import Store
from pipeline.records.ledger import LEDGER, parse_listing
from pipeline.records.record import Record, parse_record

PIXELS = "pixels"  # stands for a weights digest where the "features" are the raw pixels
ARTEFACTS = "artefacts.safetensors"
OUTCOMES = "outcomes.parquet"
# Parts of the names of metrics. An oracle's value is the best that any candidate had on the test data: to report it
# would be to choose on the test data.
ORACLE_PREFIX = "oracle_"
L2_INFIX = "_l2_"  # before a number: what another l2 than that of the protocol would have given (few-shot)
RUNS_MEAN, RUNS_STD = "_runs_mean", "_runs_std"  # over several trainings of one evaluation (fine-tuning)
# One row per test sample, for paired comparisons and for metrics that are thought of later. What is not known is null.
# Schema 1 had the first four columns, and no version in its metadata.
OUTCOMES_SCHEMA_VERSION = 2
OUTCOMES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),  # null where samples have several
        ("prediction", pa.int32()),
        ("probability", pa.float32()),  # given to the prediction; null where scores are not probabilities
        ("rank", pa.int32()),  # classes put before the true one
        ("true_probability", pa.float32()),
        ("nll", pa.float32()),
        ("labels", pa.list_(pa.field("element", pa.int32()))),  # where samples have several
        ("scores", pa.list_(pa.field("element", pa.float32()))),  # one per class, where samples have several labels
    ],
    metadata={"schema_version": str(OUTCOMES_SCHEMA_VERSION)},
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
    """One measured value with its 95 % interval over the test samples; of ``_runs_mean`` and ``_runs_std`` over
    trainings."""

    name: str
    value: float
    low: float
    high: float


class EvaluationResult(Record):
    """The result of one evaluation. ``chosen`` are hyper-parameters, chosen on the validation part, and how it went."""

    schema_version: Literal[1] = 1
    id: str
    key: EvaluationKey
    metrics: tuple[Metric, ...]
    num_samples: int
    chosen: dict[str, Any]
    seconds: float
    files: dict[str, str]  # name -> sha256 of a file beside the result


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
    settings: str  # JSON: the settings, in which rows of one evaluator differ
    protocol_version: int
    train_digest: str  # of the datasets
    test_digest: str
    baseline: Literal["pixels", "untrained"] | None
    evaluation_id: str
    weights_digest: str


def result_key(evaluation_id: str, generation: int = 0) -> str:
    """The key of the result of an evaluation."""
    return f"evaluations/{evaluation_id}/{f'result-{generation}' if generation else 'result'}.json"


def file_key(evaluation_id: str, name: str, digest: str) -> str:
    """The key of the file *name* of a result. It holds the content's digest, so that no writer hurts another's file."""
    stem, dot, ending = name.rpartition(".")
    return f"evaluations/{evaluation_id}/{stem}-{digest[:16]}{dot}{ending}"


def list_results(workspace: Store) -> list[EvaluationResult]:
    """All recorded results, by id; of each evaluation that of its current generation."""
    listings = parse_listing(workspace.list(LEDGER))
    keys = [listing.newest["result"][1].key for _, listing in sorted(listings.items()) if listing.is_recorded]
    return [parse_record(EvaluationResult, workspace.read(key), key) for key in keys]


@dataclass(frozen=True)
class ResultFilter:
    """Which evaluations to take; a task or an evaluator may be a pattern with ``*`` and ``?``. None: all."""

    task: str | None = None
    evaluator: str | None = None

    def wants(self, key: EvaluationKey) -> bool:
        """True for an evaluation that it takes."""
        return fnmatchcase(key.task, self.task or "*") and fnmatchcase(key.evaluator, self.evaluator or "*")
