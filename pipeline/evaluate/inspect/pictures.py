"""What a network looks like inside: patch filters and the similarity of its position embeddings (ViT Figure 7)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models.vit import ViT

NUM_FILTERS = 28  # as in ViT Figure 7


def patch_filters(model: ViT) -> NDArray[np.float32]:
    """The first principal components of the patch projection, (28 or fewer, P, P, 3)."""
    filters = model.patches.filters()  # (D, P, P, C)
    flat = filters.reshape(filters.shape[0], -1).double()
    _, _, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    chosen = components[:NUM_FILTERS]
    sign = torch.sign(chosen.gather(1, chosen.abs().argmax(1, keepdim=True)))  # svd leaves the sign open
    pictures: NDArray[np.float32] = (chosen * sign).reshape(-1, *filters.shape[1:]).float().numpy()
    return pictures


def position_similarity(model: ViT) -> NDArray[np.float32]:
    """Cosine similarity of each patch's position embedding with all others, (g, g, g, g)."""
    grid = model.config.grid
    positions = model.positions.detach()[0, -(grid * grid) :].double()
    unit = torch.nn.functional.normalize(positions, dim=1)
    return (unit @ unit.T).float().numpy().reshape(grid, grid, grid, grid)
