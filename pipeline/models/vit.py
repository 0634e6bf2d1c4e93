"""The Vision Transformer (ViT section 3.1): pre-norm blocks over patch tokens; features by pooling, logits by the head.

Initialisation follows vision_transformer models_vit.py: Xavier-uniform kernels of attention and MLP, MLP biases
N(0, 1e-6), zero head; patch projection and pre-logits by flax's default: LeCun normal.
Shapes: B images, C = 3 channels, N tokens (the class token first, where there is one), D width, H heads, K classes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.config import ViTConfig
from pipeline.models.layers import Block, PatchEmbedding, lecun_normal_, resample_positions, sincos_2d


class ViT(nn.Module):
    """A Vision Transformer. ``forward`` gives logits (B, K); ``features`` what the head sees (B, D or pre_logits).

    Set ``checkpointing`` to keep only each block's input for the backward pass and compute the block again there: the
    same gradients, from the same draws of dropout and stochastic depth. On the meta device no weights are drawn.
    """

    def __init__(self, config: ViTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.patches = PatchEmbedding(config.patch_size, config.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.width)) if config.pool == "cls" else None
        if config.position == "learned":
            self.positions = nn.Parameter(torch.zeros(1, config.num_tokens, config.width))
        else:
            self.register_buffer("positions", self._fixed_positions(config), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * index / last) for index in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.pre_logits = nn.Linear(config.width, config.pre_logits) if config.pre_logits else None
        self.head = nn.Linear(config.pre_logits or config.width, config.num_classes) if config.num_classes else None
        if not self.norm.weight.is_meta:
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
            lecun_normal_(self.patches.projection.weight, generator)
            self.patches.projection.bias.zero_()
            if isinstance(self.positions, nn.Parameter):
                self.positions.normal_(0, self.config.position_std, generator=generator)
            for block in self._blocks:
                block.initialise(generator)
            if self.pre_logits is not None:
                lecun_normal_(self.pre_logits.weight, generator)
                self.pre_logits.bias.zero_()
            if self.head is not None:
                self.head.weight.zero_()
                self.head.bias.fill_(self.config.head_bias)

    @property
    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))  # torch types the items of a ModuleList as Module

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, N, D): patches alone, without class token and positions."""
        out: Tensor = self.patches(images_BCHW)
        return out

    def encode(self, patches_BND: Tensor) -> Tensor:
        """Output of ``embed`` -> (B, N, D), the class token first where there is one, after the last norm."""
        return self._encoded(patches_BND, None)

    def _encoded(self, patches_BND: Tensor, rows: int | None) -> Tensor:
        """The first *rows* tokens of ``encode``, all without it: of the last block nothing else is computed."""
        x = self._block_input(patches_BND)
        for number, block in enumerate(self._blocks, 1):
            of_block = rows if number == self.config.depth else None
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, of_block, use_reentrant=False)
            else:
                x = block(x, of_block)
        out: Tensor = self.norm(x)
        return out

    def _block_input(self, patches_BND: Tensor) -> Tensor:
        """Patches with class token and positions: the input of the first block."""
        x = patches_BND
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        # DeepSpeed makes parameters bfloat16, but leaves a buffer (fixed positions) as it is.
        out: Tensor = self.dropout(x + self.positions.to(self.norm.weight.dtype))
        return out

    def tokens(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, N, D), after the last norm."""
        return self.encode(self.embed(images_BCHW))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the pooled token, through the pre-logits layer where there is one."""
        return self.head_input(self._encoded(self.embed(images_BCHW), None if self.cls is None else 1))

    def head_input(self, tokens_BND: Tensor) -> Tensor:
        """Output of ``tokens`` -> (B, D): pooled, and through the pre-logits layer where there is one."""
        pooled = tokens_BND[:, 0] if self.cls is not None else tokens_BND.mean(dim=1)
        return torch.tanh(self.pre_logits(pooled)) if self.pre_logits is not None else pooled

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        features = self.features(images_BCHW)
        return self.head(features) if self.head is not None else features

    def intermediate(self, images_BCHW: Tensor, layers: Collection[int], normed: bool = False) -> dict[int, Tensor]:
        """The outputs of blocks *layers*, from 1, each (B, N, D); *normed*: through the last norm.

        Blocks after the last of *layers* are not run. Raises ValueError for a number that is no block's.
        """
        outputs: dict[int, Tensor] = {}
        x = self._block_input(self.embed(images_BCHW))
        for number, block in enumerate(self._blocks_until(layers), 1):
            x = block(x)
            if number in layers:
                outputs[number] = self.norm(x) if normed else x
        return outputs

    def attention_weights(self, images_BCHW: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """How much each token (row) attends to each in blocks *layers*, from 1: (B, H, N, N), rows that sum to 1.

        Raises ValueError for a number that is no block's.
        """
        weights: dict[int, Tensor] = {}
        x = self._block_input(self.embed(images_BCHW))
        for number, block in enumerate(self._blocks_until(layers), 1):
            if number in layers:
                weights[number] = block.attention.weights(block.norm1(x))
            x = block(x)
        return weights

    def _blocks_until(self, layers: Collection[int]) -> list[Block]:
        wrong = sorted(layer for layer in layers if not 1 <= layer <= self.config.depth)
        if wrong:
            raise ValueError(f"no layers {wrong}: they are 1 to {self.config.depth}")
        return self._blocks[: max(layers, default=0)]

    def at_resolution(self, image_size: int) -> ViT:
        """This network for images of *image_size* pixels: a copy, its positions resampled as the paper's code does.

        Raises pydantic.ValidationError when the patch size does not divide it.
        """
        config = ViTConfig.model_validate(self.config.model_dump() | {"image_size": image_size})
        resized = ViT(config).to(device=self.norm.weight.device, dtype=self.norm.weight.dtype)
        state = self.state_dict()
        if "positions" in state:
            has_cls = self.cls is not None
            state["positions"] = resample_positions(state["positions"], self.config.grid, config.grid, has_cls)
        resized.load_state_dict(state)
        resized.checkpointing = self.checkpointing
        return resized.train(self.training)


def has_weight_decay(name: str, parameter: Tensor) -> bool:
    """True for the parameters that weight decay touches: matrices, but neither positions nor the class token."""
    return parameter.ndim == 2 and name.endswith("weight")
