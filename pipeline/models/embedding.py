"""Patches and positions. Shapes: B images, C channels, H x W pixels, N patches, P patch size, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CUT_DEVIATION = 0.87962566103423978  # of a standard normal that is cut at two deviations (flax, jax.nn.initializers)


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C*P*P): patches row by row, each flattened as channel, row, column."""
    b, c, h, w = images_BCHW.shape
    p = patch_size
    tiles = images_BCHW.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(b, (h // p) * (w // p), c * p * p)


class PatchEmbedding(nn.Module):
    """Linear projection of flattened patches, (B, C, H, W) -> (B, N, D).

    A matrix product, not a strided convolution: the same function, and the faster one on CPUs.
    """

    def __init__(self, patch_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.projection = nn.Linear(channels * patch_size**2, width)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D)."""
        out: Tensor = self.projection(patchify(images_BCHW, self.patch_size))
        return out

    def filters(self) -> Tensor:
        """The projection as pictures: (D, P, P, C)."""
        p = self.patch_size
        return self.projection.weight.detach().reshape(-1, self.channels, p, p).permute(0, 2, 3, 1)


def lecun_normal_(kernel: Tensor, generator: torch.Generator) -> None:
    """Draw *kernel* (fan out, fan in): variance 1 / fan in, cut at two deviations (flax's default, lecun_normal)."""
    deviation = kernel.shape[1] ** -0.5 / _CUT_DEVIATION
    nn.init.trunc_normal_(kernel, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)


def sincos_2d(grid: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed 2-D sine-cosine positions, (grid*grid, width) (arXiv 2205.01580; big_vision models/vit.py)."""
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    omega = torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1 or 1)
    omega = 1.0 / temperature**omega
    out_y = y.flatten()[:, None] * omega[None]
    out_x = x.flatten()[:, None] * omega[None]
    parts = [out_x.sin(), out_x.cos(), out_y.sin(), out_y.cos()]
    return torch.cat(parts, dim=1).to(torch.float32)
