"""The Vision Transformer (ViT section 3.1): pre-norm blocks over patch tokens; features by pooling, logits by the head.

Initialisation follows vision_transformer models_vit.py: Xavier-uniform kernels, MLP biases N(0, 1e-6), zero head.
Shapes: B images, C = 3 channels, N tokens, D width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from pipeline.models.attention import SelfAttention
from pipeline.models.config import ViTConfig
from pipeline.models.embedding import PatchEmbedding, sincos_2d

_EPSILON = 1e-6  # of every LayerNorm (vision_transformer, big_vision)


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


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.attention = SelfAttention(config.width, config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.norm2 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.mlp = Mlp(config)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the kernels anew."""
        self.attention.initialise(generator)
        self.mlp.initialise(generator)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x_BND = x_BND + self.dropout(self.attention(self.norm1(x_BND)))
        out: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out


class ViT(nn.Module):
    """A Vision Transformer. ``forward`` gives logits (B, K); ``features`` what the head sees (B, D or pre_logits)."""

    def __init__(self, config: ViTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchEmbedding(config.patch_size, config.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.width)) if config.pool == "cls" else None
        if config.position == "learned":
            self.positions = nn.Parameter(torch.zeros(1, config.num_tokens, config.width))
        else:
            self.register_buffer("positions", self._fixed_positions(config), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_EPSILON)
        self.pre_logits = nn.Linear(config.width, config.pre_logits) if config.pre_logits else None
        self.head = nn.Linear(config.pre_logits or config.width, config.num_classes) if config.num_classes else None
        self.initialise(seed)

    @staticmethod
    def _fixed_positions(config: ViTConfig) -> Tensor:
        grid = sincos_2d(config.grid, config.width)
        if config.pool == "cls":
            grid = torch.cat([torch.zeros(1, config.width), grid])
        return grid[None]

    def initialise(self, seed: int) -> None:
        """Draw every weight anew from *seed*; the same weights on every platform and rank."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.patches.projection.weight, generator=generator)
            self.patches.projection.bias.zero_()
            if isinstance(self.positions, nn.Parameter):
                self.positions.normal_(0, self.config.position_std, generator=generator)
            for block in self.blocks:
                assert isinstance(block, Block)  # noqa: S101 - torch types the items of a ModuleList as Module
                block.initialise(generator)
            if self.pre_logits is not None:
                nn.init.xavier_uniform_(self.pre_logits.weight, generator=generator)
                self.pre_logits.bias.zero_()
            if self.head is not None:
                self.head.weight.zero_()
                self.head.bias.fill_(self.config.head_bias)

    def tokens(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, N, D), after the last norm."""
        x = self.patches(images_BCHW)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.dropout(x + self.positions)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the pooled token, through the pre-logits layer where there is one."""
        tokens = self.tokens(images_BCHW)
        pooled = tokens[:, 0] if self.cls is not None else tokens.mean(dim=1)
        return torch.tanh(self.pre_logits(pooled)) if self.pre_logits is not None else pooled

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        features = self.features(images_BCHW)
        return self.head(features) if self.head is not None else features


def decayed(name: str, parameter: Tensor) -> bool:
    """True for the parameters that weight decay touches: matrices, but neither positions nor the class token."""
    return parameter.ndim == 2 and name.endswith("weight")
