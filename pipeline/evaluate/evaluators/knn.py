"""Weighted k-NN (DINOv2, arXiv 2304.07193; Wu et al., arXiv 1805.01978): cosine similarity, weights exp(s / T).

Equal similarities are taken in the order of the training samples, so the k nearest are always the same ones.
Similarities are float32; class weights equal a float64 brute force to 1e-4.

Shapes: N training samples, M queries, D features, K classes, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.probe import Candidate, FeatureArray, _probe, settings_of, wanted_specs
from pipeline.evaluate.features.storage import FeatureSpec
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.recipe import KnnSettings
from pipeline.evaluate.splits import Choice, FitPart, TestPart, TrainPart
from pipeline.evaluate.task_data import TaskData, open_task
from pipeline.records.score import Metric

Array = NDArray[np.float32]
_CHUNK_BYTES = 128 * 2**20  # of similarities in memory at once; the work arrays take about as much again
_MOST_QUERIES = 1024
_VOTE_FLOATS = 2**24  # of several labels per neighbour


def nearest(train_ND: Array, queries_MD: Array, k: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """For chunks of queries, in order: the cosines (m, k) of the k nearest, falling, and their rows in *train_ND*.

    A k above N means all of N. The training features are copied once; similarities take bounded memory.
    """
    for similarity, index in _nearest(train_ND, queries_MD, k):
        yield similarity.numpy(), index.numpy()


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
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    known = torch.from_numpy(np.ascontiguousarray(labels))
    for similarity, index in _nearest(train_ND, queries_MD, max(ks)):
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        votes = torch.zeros(len(weights), num_classes)
        done = 0
        for k in sorted(set(ks)):
            part = slice(done, k)
            _add_votes(votes, weights[:, part], index[:, part], known)
            found[k].append(votes / weights[:, :k].sum(1, keepdim=True))
            done = k
    return {k: torch.cat(parts).numpy() for k, parts in found.items()}


def _add_votes(votes_mK: Tensor, weights_mk: Tensor, index_mk: Tensor, known: Tensor) -> None:
    if known.ndim == 1:
        votes_mK.scatter_add_(1, known[index_mk].long(), weights_mk)
        return
    step = max(1, _VOTE_FLOATS // max(1, index_mk.shape[1] * known.shape[1]))
    for start in range(0, len(votes_mK), step):
        rows = slice(start, start + step)
        votes_mK[rows] += torch.einsum("mk,mkc->mc", weights_mk[rows], known[index_mk[rows]].float())


def _nearest(train_ND: Array, queries_MD: Array, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    x = torch.nn.functional.normalize(torch.from_numpy(train_ND), dim=1)
    k = min(k, len(x))
    size = max(1, min(_MOST_QUERIES, _CHUNK_BYTES // (4 * len(x))))
    for chunk in torch.from_numpy(queries_MD).split(size):
        similarity = torch.nn.functional.normalize(chunk, dim=1) @ x.T
        yield _largest(similarity, k)


def _largest(similarity_mN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, falling; equal ones by their place."""
    index, left_out = _select_in_groups(similarity_mN, k)
    values = similarity_mN.gather(1, index)
    # Which of several equal values at the border is selected is not defined: such rows are sorted again, stably.
    unclear = left_out >= values.amin(1)
    if unclear.any():
        again = similarity_mN[unclear].sort(dim=1, descending=True, stable=True)
        values[unclear], index[unclear] = again.values[:, :k], again.indices[:, :k]
    by_place = index.argsort(dim=1)
    values, index = values.gather(1, by_place), index.gather(1, by_place)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), index.gather(1, order)


def _select_in_groups(similarity_mN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As _select, in two steps: the k groups with the largest maxima hold the k largest values."""
    m, n = similarity_mN.shape
    size = math.isqrt(n // k)  # makes about as many groups as candidates
    if size < 4:
        return _select(similarity_mN, k)
    groups = n // size
    whole = similarity_mN[:, : groups * size].view(m, size, groups)  # a group is a column: maxima run along memory
    chosen, left_groups = _select(whole.amax(1), k)
    places = (chosen[:, None, :] + groups * torch.arange(size)[None, :, None]).flatten(1)
    places = torch.cat([places, torch.arange(groups * size, n).expand(m, -1)], dim=1)
    inner, left_candidates = _select(similarity_mN.gather(1, places), k)
    return places.gather(1, inner), torch.maximum(left_groups, left_candidates)


def _select(values_mC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places (m, k) of the k largest in any order, and the largest value (m,) that is left out.

    NumPy's partition is used because it took a quarter of the time of torch's topk.
    """
    if k == values_mC.shape[1]:
        return torch.arange(k).repeat(len(values_mC), 1), torch.full((len(values_mC),), -math.inf)
    order = torch.from_numpy(np.argpartition(-values_mC.numpy(), k, axis=1)[:, : k + 1])
    return order[:, :k], values_mC.gather(1, order[:, k:]).squeeze(1)


def knn(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Weighted k-NN; k chosen on validation (ties: the smaller).

    The oracle chooses among every k with all training samples as neighbours, of the layer that was chosen.
    """
    data = open_task(workspace, planned)
    return _probe(data, wanted_specs(planned), _Knn(data, settings_of(planned)))


class _Knn:
    def __init__(self, data: TaskData, settings: KnnSettings) -> None:
        self._data, self._settings = data, settings

    def choose(self, spec: FeatureSpec, choice: Choice) -> Candidate:
        found = self._votes(choice.fit, choice.validation.features)
        shares = {k: self._data.share(choice.validation.labels, found[k]) for k in sorted(found)}
        k = max(shares, key=lambda k: shares[k])
        return Candidate(spec, shares[k], {"k": k})

    def judge(self, best: Candidate, train: TrainPart, test: TestPart) -> tuple[FeatureArray, Metric]:
        found = self._votes(train, test.features)
        ks = sorted(found)
        shares = [self._data.share(test.labels, found[k]) for k in ks]
        return found[best.chosen["k"]], self._data.oracle(test, shares, lambda place: found[ks[place]])

    def _votes(self, train: FitPart | TrainPart, queries: FeatureArray) -> dict[int, FeatureArray]:
        return knn_probabilities(
            train.features, train.labels, queries, self._data.num_classes, self._settings.k, self._settings.temperature
        )
