"""Weighted k-NN (DINOv2, arXiv 2304.07193; Wu et al., arXiv 1805.01978): cosine similarity, weights exp(s / T).

Equal similarities are taken in the order of the training samples, so the k nearest are always the same ones.
Similarities are float32; class weights equal a float64 brute force to 1e-4.

Shapes: N training samples, M queries, m queries of a chunk, D features, K classes, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import Candidate, Values, layer_specs, run_probe, settings_of
from pipeline.evaluate.features.storage import FeatureSpec
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import KnnSettings
from pipeline.evaluate.splits import Choice, FitPart, TestPart, TrainPart
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.records.score import Metric

Array = NDArray[np.float32]
_CHUNK_BYTES = 128 * 2**20  # of similarities in memory at once; the work arrays take about as much again
_MAX_QUERIES = 1024  # of a chunk
_VOTE_FLOATS = 2**24  # labels of neighbours in memory at once, where samples have several


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Weighted k-NN; k chosen on the validation part (ties: the smaller).

    The oracle chooses among every k with all training samples as neighbours, of the chosen layer.
    """
    data = open_task(workspace, planned)
    return run_probe(data, layer_specs(planned), _KnnSolver(data, settings_of(planned)))


class _KnnSolver:
    """See ProbeSolver."""

    def __init__(self, data: TaskData, settings: KnnSettings) -> None:
        self._data, self._settings = data, settings

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        by_k = self._probabilities(choice.fit, choice.validation.features)
        shares = {k: self._data.share(choice.validation.labels, by_k[k]) for k in sorted(by_k)}
        k = max(shares, key=lambda k: shares[k])
        return Candidate(spec, shares[k], {"k": k})

    def test(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[Values, Metric]:
        by_k = self._probabilities(train, test.features)
        ks = sorted(by_k)
        shares = [self._data.share(test.labels, by_k[k]) for k in ks]
        return by_k[best.chosen["k"]], self._data.oracle(test, shares, lambda index: by_k[ks[index]])

    def _probabilities(self, train: FitPart | TrainPart, queries_MD: Values) -> dict[int, Values]:
        num_classes, settings = self._data.num_classes, self._settings
        return knn_probabilities(
            train.features, train.labels, queries_MD, num_classes, settings.k, settings.temperature
        )


def knn_probabilities(
    train_ND: Array,
    labels: NDArray[np.generic],
    queries_MD: Array,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> dict[int, Array]:
    """For each k the (M, K) class weights. A k above N means all of N.

    With labels (N,) each row sums to one. With labels (N, K) of 0 and 1 an entry is the weighted share of the
    neighbours that have the label.
    """
    chunks: dict[int, list[Tensor]] = {k: [] for k in ks}
    train_labels = torch.from_numpy(np.ascontiguousarray(labels))
    for similarity, index in _nearest(train_ND, queries_MD, max(ks)):
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        votes = torch.zeros(len(weights), num_classes)
        done = 0
        for k in sorted(set(ks)):
            part = slice(done, k)
            _add_votes(votes, weights[:, part], index[:, part], train_labels)
            chunks[k].append(votes / weights[:, :k].sum(1, keepdim=True))
            done = k
    return {k: torch.cat(parts).numpy() for k, parts in chunks.items()}


def nearest(train_ND: Array, queries_MD: Array, k: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """For chunks of queries, in order: the cosines (m, k) of the k nearest, falling, and their rows in *train_ND*.

    A k above N means all of N. The training features are copied once; similarities take bounded memory.
    """
    for similarity, index in _nearest(train_ND, queries_MD, k):
        yield similarity.numpy(), index.numpy()


def _nearest(train_ND: Array, queries_MD: Array, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    x = torch.nn.functional.normalize(torch.from_numpy(train_ND), dim=1)
    k = min(k, len(x))
    size = max(1, min(_MAX_QUERIES, _CHUNK_BYTES // (4 * len(x))))
    for chunk in torch.from_numpy(queries_MD).split(size):
        similarity = torch.nn.functional.normalize(chunk, dim=1) @ x.T
        yield _top_k(similarity, k)


def _add_votes(votes_mK: Tensor, weights_mk: Tensor, index_mk: Tensor, train_labels: Tensor) -> None:
    if train_labels.ndim == 1:
        votes_mK.scatter_add_(1, train_labels[index_mk].long(), weights_mk)
        return
    step = max(1, _VOTE_FLOATS // max(1, index_mk.shape[1] * train_labels.shape[1]))
    for start in range(0, len(votes_mK), step):
        rows = slice(start, start + step)
        votes_mK[rows] += torch.einsum("mk,mkc->mc", weights_mk[rows], train_labels[index_mk[rows]].float())


def _top_k(similarity_mN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, falling, and their columns; equal ones by column."""
    index, largest_rest = _select_in_groups(similarity_mN, k)
    values = similarity_mN.gather(1, index)
    # Which of several equal values at the border is selected is not defined: such rows are sorted again, stably.
    ambiguous = largest_rest >= values.amin(1)
    if ambiguous.any():
        again = similarity_mN[ambiguous].sort(dim=1, descending=True, stable=True)
        values[ambiguous], index[ambiguous] = again.values[:, :k], again.indices[:, :k]
    by_column = index.argsort(dim=1)
    values, index = values.gather(1, by_column), index.gather(1, by_column)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), index.gather(1, order)


def _select_in_groups(similarity_mN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As _select, in two steps: the k groups with the largest maxima hold the k largest values."""
    m, n = similarity_mN.shape
    size = math.isqrt(n // k)  # makes about as many groups as candidates
    if size < 4:
        return _select(similarity_mN, k)
    groups = n // size
    grouped = similarity_mN[:, : groups * size].view(m, size, groups)  # a group is a column: maxima run along memory
    chosen, rest_groups = _select(grouped.amax(1), k)
    columns = (chosen[:, None, :] + groups * torch.arange(size)[None, :, None]).flatten(1)
    columns = torch.cat([columns, torch.arange(groups * size, n).expand(m, -1)], dim=1)
    inner, rest_candidates = _select(similarity_mN.gather(1, columns), k)
    return columns.gather(1, inner), torch.maximum(rest_groups, rest_candidates)


def _select(values_mC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns (m, k) of the k largest in any order, and the largest value (m,) of the rest.

    NumPy's partition is used because it took a quarter of the time of torch's topk.
    """
    if k == values_mC.shape[1]:
        return torch.arange(k).repeat(len(values_mC), 1), torch.full((len(values_mC),), -math.inf)
    order = torch.from_numpy(np.argpartition(-values_mC.numpy(), k, axis=1)[:, : k + 1])
    return order[:, :k], values_mC.gather(1, order[:, k:]).squeeze(1)
