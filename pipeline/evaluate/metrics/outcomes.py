"""What an evaluator returns: outcomes of each test sample, stored as ``outcomes.parquet``, and what it chose.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base.disk_table import read_parquet
from pipeline.base.errors import DamageError
from pipeline.records.score import OUTCOMES_SCHEMA, OUTCOMES_SCHEMA_VERSION, Metric

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# Log-likelihoods take smaller probabilities as this, so that one sample without any vote does not make them infinite.
# scikit-learn's log_loss clips float32 input at the same number.
_MIN_PROBABILITY = float(np.finfo(np.float32).eps)
_NO_LABEL = -1  # in ``labels`` where samples have several
_LABELS, _SCORES = OUTCOMES_SCHEMA.field("labels").type, OUTCOMES_SCHEMA.field("scores").type


@dataclass(frozen=True)
class Outcomes:
    """Per test sample (N,): its key, true label, predicted label, and the probability given to the prediction.

    Where scores are not probabilities (regression), ``probabilities`` are NaN. ``ranks``: how many classes were put
    before the true one, 0 when it is the prediction. Where samples have several labels, ``labels`` are -1, the
    prediction is the label with the largest score, and ``targets`` (N, K) bool and ``scores`` (N, K) hold the rest.
    None: not known.
    """

    keys: tuple[str, ...]
    labels: Ints
    predictions: Ints
    probabilities: Floats
    ranks: Ints | None = None
    true_probabilities: Floats | None = None
    nll: Floats | None = None
    targets: NDArray[np.bool_] | None = None
    scores: Floats | None = None


@dataclass(frozen=True)
class EvalOutput:
    """What an evaluator returns: outcomes on the test samples, which have *num_classes*.

    *chosen*: settings, as chosen on the validation part; *artefacts*: arrays by name; *metrics*: those that cannot be
    computed from the outcomes.
    """

    outcomes: Outcomes
    num_classes: int
    chosen: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, NDArray[Any]] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()


def of_probabilities(keys: tuple[str, ...], labels_N: Ints, probabilities_NK: NDArray[Any]) -> Outcomes:
    """From class probabilities, each row summing to one."""
    rows = np.arange(len(labels_N))
    predictions = probabilities_NK.argmax(axis=1).astype(np.int64)
    true = probabilities_NK[rows, labels_N].astype(np.float32)
    return Outcomes(
        keys,
        labels_N,
        predictions,
        probabilities_NK[rows, predictions].astype(np.float32),
        _ranks(probabilities_NK, labels_N),
        true,
        -np.log(np.clip(true, _MIN_PROBABILITY, 1.0)),
    )


def of_scores(keys: tuple[str, ...], labels_N: Ints, scores_NK: NDArray[Any]) -> Outcomes:
    """From scores of which only the order means something: no probabilities, no NLL."""
    unknown = np.full(len(labels_N), np.nan, np.float32)
    predictions = scores_NK.argmax(axis=1).astype(np.int64)
    return Outcomes(keys, labels_N, predictions, unknown, _ranks(scores_NK, labels_N))


def of_label_scores(
    keys: tuple[str, ...], targets_NK: NDArray[Any], scores_NK: NDArray[Any], *, calibrated: bool
) -> Outcomes:
    """For samples with several labels. *calibrated*: the scores are probabilities of each label on its own.

    The NLL of a sample is then the sum over labels of the binary cross-entropies.
    """
    scores, targets = scores_NK.astype(np.float32), targets_NK.astype(bool)
    predictions = scores.argmax(axis=1).astype(np.int64)
    unknown = np.full(len(keys), np.nan, np.float32)
    likelihoods = np.clip(np.where(targets, scores, 1 - scores), _MIN_PROBABILITY, 1.0)
    return Outcomes(
        keys,
        np.full(len(keys), _NO_LABEL, np.int64),
        predictions,
        scores[np.arange(len(keys)), predictions] if calibrated else unknown,
        nll=-np.log(likelihoods).sum(axis=1) if calibrated else None,
        targets=targets,
        scores=scores,
    )


def _ranks(scores_NK: NDArray[Any], labels_N: Ints) -> Ints:
    """Classes with a larger score, and of equal ones those that argmax would take first."""
    true = scores_NK[np.arange(len(labels_N)), labels_N][:, None]
    before = np.arange(scores_NK.shape[1]) < labels_N[:, None]
    ranks: Ints = ((scores_NK > true) | ((scores_NK == true) & before)).sum(axis=1)
    return ranks


def pack_outcomes(outcomes: Outcomes) -> bytes:
    """The bytes of ``outcomes.parquet``. What is None is null."""
    columns: dict[str, Any] = {
        "key": pa.array(outcomes.keys, pa.string()),
        "label": pa.array(outcomes.labels, pa.int32(), mask=outcomes.labels == _NO_LABEL),
        "prediction": pa.array(outcomes.predictions, pa.int32()),
        "probability": _floats(outcomes.probabilities),
        "rank": None if outcomes.ranks is None else pa.array(outcomes.ranks, pa.int32()),
        "true_probability": _floats(outcomes.true_probabilities),
        "nll": _floats(outcomes.nll),
        "labels": None if outcomes.targets is None else _sets(outcomes.targets),
        "scores": None if outcomes.scores is None else _rows(outcomes.scores),
    }
    count = len(outcomes.keys)
    arrays = [
        pa.nulls(count, field.type) if columns[field.name] is None else columns[field.name] for field in OUTCOMES_SCHEMA
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=OUTCOMES_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def unpack_outcomes(data: bytes, name: str = "outcomes.parquet") -> Outcomes:
    """The outcomes that were packed. Files of schema 1 have neither ranks nor likelihoods.

    Raises DamageError, naming *name*, for a newer schema and for a missing column.
    """
    table = read_parquet(data)
    version = int((table.schema.metadata or {}).get(b"schema_version", b"1"))
    if version > OUTCOMES_SCHEMA_VERSION:
        raise DamageError(f"{name} has schema {version}, this version reads up to {OUTCOMES_SCHEMA_VERSION}")
    missing = {"key", "label", "prediction", "probability"} - set(table.column_names)
    if missing:
        raise DamageError(f"{name} has no column {min(missing)!r}")
    scores = _column(table, "scores")
    if scores is not None:
        scores = scores.combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return Outcomes(
        tuple(table["key"].to_pylist()),
        table["label"].fill_null(_NO_LABEL).to_numpy().astype(np.int64),
        table["prediction"].to_numpy().astype(np.int64),
        table["probability"].fill_null(float("nan")).to_numpy(),
        _numbers(table, "rank", np.int64),
        _numbers(table, "true_probability", np.float32),
        _numbers(table, "nll", np.float32),
        None if scores is None else _targets(table, scores.shape[1]),
        scores,
    )


def _floats(values: NDArray[np.float32] | None) -> pa.Array | None:
    return None if values is None else pa.array(values, pa.float32(), mask=np.isnan(values))


def _sets(targets_NK: NDArray[np.bool_]) -> pa.Array:
    ends = np.concatenate([[0], targets_NK.sum(axis=1).cumsum()])
    return pa.ListArray.from_arrays(ends.astype(np.int32), pa.array(targets_NK.nonzero()[1], pa.int32()), _LABELS)


def _rows(scores_NK: NDArray[np.float32]) -> pa.Array:
    ends = np.arange(len(scores_NK) + 1) * scores_NK.shape[1]
    return pa.ListArray.from_arrays(ends.astype(np.int32), pa.array(scores_NK.ravel(), pa.float32()), _SCORES)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """The column; None where it is missing or holds nothing but nulls."""
    if name not in table.column_names or table[name].null_count == table.num_rows:
        return None
    return table[name]


def _numbers(table: pa.Table, name: str, kind: type[np.generic]) -> Any:
    column = _column(table, name)
    return None if column is None else column.to_numpy().astype(kind)


def _targets(table: pa.Table, num_classes: int) -> NDArray[np.bool_]:
    lists = table["labels"].combine_chunks()
    rows = np.repeat(np.arange(table.num_rows), np.diff(lists.offsets.to_numpy()))
    targets = np.zeros((table.num_rows, num_classes), dtype=bool)
    targets[rows, lists.flatten().to_numpy()] = True
    return targets
