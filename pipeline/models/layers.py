"""The layers of a ViT: patch embedding, positions and their resampling; MLP, stochastic depth, the pre-norm block.

Shapes: B images, C channels, H x W pixels, P side of a patch, N tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.models.attention import SelfAttention
from pipeline.models.config import ViTConfig

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


def resample_positions(positions_1ND: Tensor, from_grid: int, to_grid: int, has_cls: bool) -> Tensor:
    """(1, from_grid**2 (+1), D) -> (1, to_grid**2 (+1), D); the class token's row, the first, stays as it is.

    For fine-tuning at a higher resolution (ViT, section 3.2), as vision_transformer (checkpoint.py) and big_vision
    (models/vit.py) do it: ``scipy.ndimage.zoom(grid, order=1)``, which is bilinear with the corners of both grids on
    each other. Other ways (corners not aligned, bicubic, antialiased) give other numbers.

    Computed in float64, returned in the input's dtype. Raises ValueError when there is another number of rows.
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


class Mlp(nn.Module):
    """Dense, GELU, dense; dropout after each dense layer."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.approximate = "tanh" if config.gelu == "tanh" else "none"

    def initialise(self, generator: torch.Generator) -> None:
        """Xavier-uniform kernels, biases N(0, 1e-6)."""
        with torch.no_grad():
            for layer in (self.up, self.down):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                layer.bias.normal_(0, 1e-6, generator=generator)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden = self.dropout(F.gelu(self.up(x_BND), approximate=self.approximate))
        out: Tensor = self.dropout(self.down(hidden))
        return out


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, all of a sample's branch is left out with chance *rate*.

    What stays is divided by the chance of staying. The draws are torch's own, as those of dropout are.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if not self.training or self.rate == 0.0:
            return branch_BND
        keep_prob = 1.0 - self.rate
        drawn_B11 = torch.rand(branch_BND.shape[0], 1, 1, device=branch_BND.device) < keep_prob
        return branch_BND * drawn_B11 / keep_prob


class Block(nn.Module):
    """One pre-norm transformer block, each of whose two branches is left out with chance *drop_path*."""

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = SelfAttention(config.width, config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = Mlp(config)
        self.drop_path = DropPath(drop_path)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the kernels anew."""
        self.attention.initialise(generator)
        self.mlp.initialise(generator)

    def forward(self, x_BND: Tensor, rows: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, rows, D): the outputs of the first *rows* tokens alone."""
        x_BND = x_BND[:, :rows] + self.drop_path(self.dropout(self.attention(self.norm1(x_BND), rows)))
        out: Tensor = x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))
        return out
