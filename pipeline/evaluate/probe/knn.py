"""Weighted k-NN (DINOv2, arXiv 2304.07193; Wu et al., arXiv 1805.01978): cosine similarity, weights exp(s / T).

Shapes: N training samples, M queries, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]
_CHUNK = 1024  # queries whose similarities are in memory at once


def knn_probabilities(
    train_ND: Array,
    labels_N: NDArray[np.int64],
    queries_MD: Array,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> dict[int, Array]:
    """For each k the (M, K) class weights, normalised. A k above N means all of N."""
    x = torch.nn.functional.normalize(torch.from_numpy(train_ND), dim=1)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels_N), num_classes).float()
    most = min(max(ks), len(x))
    parts: dict[int, list[Array]] = {k: [] for k in ks}
    for chunk in torch.from_numpy(queries_MD).split(_CHUNK):
        similarity, index = (torch.nn.functional.normalize(chunk, dim=1) @ x.T).topk(most, dim=1)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        for k in ks:
            votes = (weights[:, :k, None] * one_hot[index[:, :k]]).sum(1)
            parts[k].append((votes / votes.sum(1, keepdim=True)).numpy())
    return {k: np.concatenate(values) for k, values in parts.items()}
