"""Position embeddings for another grid of patches (ViT section 3.2, fine-tuning at higher resolution).

As vision_transformer checkpoint.py and big_vision models/vit.py do: ``scipy.ndimage.zoom(grid, order=1)``, which is
bilinear with the corners of both grids on each other. Other ways (corners not aligned, bicubic, antialiased) give
other numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor


def resample_positions(positions_1ND: Tensor, from_grid: int, to_grid: int, has_cls: bool) -> Tensor:
    """(1, from_grid**2 (+1), D) -> (1, to_grid**2 (+1), D); the class token's row, the first, stays as it is.

    Computed in float64, given in the dtype that came. Raises ValueError when there is another number of rows.
    """
    rows = from_grid**2 + has_cls
    if positions_1ND.shape[1] != rows:
        raise ValueError(
            f"{positions_1ND.shape[1]} position embeddings, not the {rows} of a {from_grid} x {from_grid} grid"
        )
    if from_grid == to_grid:
        return positions_1ND
    cls, flat = positions_1ND[:, :has_cls], positions_1ND[:, has_cls:]
    grid_1DHW = flat.double().reshape(1, from_grid, from_grid, -1).permute(0, 3, 1, 2)
    size = (to_grid, to_grid)
    zoomed = F.interpolate(grid_1DHW, size=size, mode="bilinear", align_corners=True)
    resampled = zoomed.permute(0, 2, 3, 1).reshape(1, to_grid**2, -1)
    return torch.cat([cls, resampled.to(positions_1ND.dtype)], dim=1)
