"""Mean average precision against scikit-learn and torchmetrics; outcomes survive being stored."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, log_loss
from torchmetrics.classification import MultilabelAveragePrecision

from pipeline.base.errors import DamageError
from pipeline.evaluate.metrics import (
    Outcomes,
    mean_ap,
    nll,
    of_label_scores,
    of_probabilities,
    of_scores,
    pack_outcomes,
    top5,
    unpack_outcomes,
)
from pipeline.evaluate.metrics.classification import average_precisions, mean_average_precision, resampled_map
from pipeline.evaluate.metrics.intervals import resampled
from pipeline.records.score import OUTCOMES_SCHEMA


def scored(count: int, labels: int, seed: int, digits: int = 6) -> tuple[NDArray, NDArray]:
    """0/1 targets of rare and common labels, and probabilities of few *digits*, so that some are equal."""
    draw = np.random.default_rng(seed)
    targets = draw.random((count, labels)) < np.linspace(0.02, 0.5, labels)
    logits = 2 * targets - 1 + draw.normal(size=targets.shape)
    return targets, (1 / (1 + np.exp(-logits))).round(digits).astype(np.float32)


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_average_precision_equals_scikit_learns_and_torchmetrics(digits: int) -> None:
    targets, scores = scored(500, 6, 1, digits)
    found = average_precisions(scores, targets)
    expected = [average_precision_score(targets[:, label], scores[:, label]) for label in range(6)]
    assert found == pytest.approx(np.array(expected), abs=1e-12)
    reference = MultilabelAveragePrecision(num_labels=6, average=None)
    others = reference(torch.from_numpy(scores), torch.from_numpy(targets).long())
    assert found == pytest.approx(others.numpy(), abs=1e-6)
    assert mean_average_precision(scores, targets) == pytest.approx(np.mean(expected))


def test_a_label_that_no_sample_has_is_left_out() -> None:
    targets, scores = scored(100, 3, 1)
    targets[:, 1] = False
    assert np.isnan(average_precisions(scores, targets)[1])
    expected = np.mean([average_precision_score(targets[:, label], scores[:, label]) for label in (0, 2)])
    assert mean_average_precision(scores, targets) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no sample has any label"):
        mean_average_precision(scores, np.zeros_like(targets))


def test_resampled_values_equal_scikit_learns_with_sample_weights() -> None:
    targets, scores = (part[:, 1:] for part in scored(120, 4, 1, digits=2))  # no label that a draw could miss
    found = resampled_map(scores, targets, seed=4, draws=20)
    (weights,) = resampled(120, seed=4, draws=20)
    for value, weight in zip(found, weights, strict=True):
        each = [average_precision_score(targets[:, k], scores[:, k], sample_weight=weight) for k in range(3)]
        assert value == pytest.approx(np.mean(each), abs=1e-12)


def test_metrics_of_several_labels() -> None:
    targets, scores = scored(400, 5, 1)
    outcomes = of_label_scores(tuple(map(str, range(400))), targets, scores, calibrated=True)
    found = mean_ap(outcomes, draws=300)
    assert found.name == "mAP"
    assert found.low < found.value < found.high
    expected = sum(log_loss(targets[:, label], scores[:, label].astype(float)) for label in range(5))
    assert nll(outcomes).value == pytest.approx(expected, rel=1e-5)
    loose = of_label_scores(outcomes.keys, targets, 3 * scores, calibrated=False)
    assert mean_ap(loose, draws=300) == found
    with pytest.raises(ValueError, match="no probabilities"):
        nll(loose)
    with pytest.raises(ValueError, match="no ranks"):
        top5(outcomes)
    single = of_probabilities(("a", "b"), np.array([0, 1]), np.full((2, 2), 0.5, np.float32))
    with pytest.raises(ValueError, match="several labels"):
        mean_ap(single)


def same(one: Outcomes, other: Outcomes) -> None:
    """Field by field, types too, NaN equal to NaN."""
    for name in Outcomes.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name, strict=True)


def test_outcomes_survive_being_stored() -> None:
    keys, labels = tuple("abcdef"), np.array([0, 1, 2, 0, 1, 2])
    scores = np.random.default_rng(0).dirichlet(np.ones(3), 6).astype(np.float32)
    targets, shares = scored(6, 4, 1)
    targets[0] = False  # a sample without a label
    for outcomes in (
        of_probabilities(keys, labels, scores),
        of_scores(keys, labels, scores),
        of_label_scores(keys, targets, shares, calibrated=True),
        of_label_scores(keys, targets, shares, calibrated=False),
    ):
        data = pack_outcomes(outcomes)
        assert pq.read_schema(io.BytesIO(data)).equals(OUTCOMES_SCHEMA, check_metadata=True)
        same(unpack_outcomes(data), outcomes)
        assert pack_outcomes(unpack_outcomes(data)) == data


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_outcomes_of_the_first_schema_are_read() -> None:
    kinds = [("key", pa.string()), ("label", pa.int32()), ("prediction", pa.int32()), ("probability", pa.float32())]
    old = pa.table(
        {"key": ["a", "b"], "label": [1, 2], "prediction": [1, 0], "probability": [0.5, 0.75]}, pa.schema(kinds)
    )
    found = unpack_outcomes(parquet(old))
    assert (found.keys, found.labels.tolist(), found.predictions.tolist()) == (("a", "b"), [1, 2], [1, 0])
    assert found.probabilities.tolist() == [0.5, 0.75]
    assert (found.ranks, found.nll, found.targets, found.scores) == (None, None, None, None)
    with pytest.raises(DamageError, match="here has no column 'prediction'"):
        unpack_outcomes(parquet(old.drop_columns("prediction")), "here")
    with pytest.raises(DamageError, match="here has schema 9"):
        unpack_outcomes(parquet(old.replace_schema_metadata({"schema_version": "9"})), "here")
