"""One pre-norm transformer block, its MLP, and stochastic depth. Shapes: B images, N tokens, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from pipeline.models.attention import SelfAttention
from pipeline.models.config import ViTConfig


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

    What is kept is divided by the chance of keeping it. The draws are torch's own, as those of dropout are.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if not self.training or self.rate == 0.0:
            return branch_BND
        keep = 1.0 - self.rate
        drawn_B11 = torch.rand(branch_BND.shape[0], 1, 1, device=branch_BND.device) < keep
        return branch_BND * drawn_B11 / keep


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
