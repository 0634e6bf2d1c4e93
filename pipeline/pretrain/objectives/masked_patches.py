"""Masked patch prediction (ViT B.1.2): half of the patch embeddings are corrupted, their mean colours are predicted.

Which patches are corrupted, and how, is drawn from (seed, position) alone. ViT leaves open whether the half is exact:
here it is, so that every image has equally many patches to predict, as in BERT's code. Each of them is then masked,
replaced or left as it is by a draw of its own. "Another random patch" is one of the same image, other than itself.

Shapes: B images, N patches, M of them corrupted, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.errors import RecipeError
from pipeline.base.seeds import generator
from pipeline.models.layers import patchify
from pipeline.models.vit import ViT
from pipeline.pretrain.objectives.recipe import COLOUR_LEVELS, NUM_COLOURS, num_corrupted
from pipeline.train.loop import Loss

_MASKED_SHARE, _REPLACED_SHARE = 0.8, 0.1  # of the corrupted patches; the rest stays as it is
_CHANNELS = 3
_ROUNDING = 1e-3  # of a pixel's value: a mean that is whole may have come back a little less


@dataclass(frozen=True)
class MaskedPatches:
    """Predicts the 3-bit mean colours of a *share* of the patches."""

    share: float = 0.5

    @property
    def loss(self) -> MaskedPatchLoss:
        """See Objective."""
        return MaskedPatchLoss()

    def network(self, vit: ViT) -> nn.Module:
        """The ViT with a mask token and a decoder. Raises RecipeError for one with a head: it would not be trained."""
        if vit.head is not None or vit.pre_logits is not None:
            raise RecipeError(["masked_patches trains no head: leave out model.num_classes and model.pre_logits"])
        return MaskedPatchNetwork(vit, self.share)

    def vit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those below ``vit``."""
        return {name.removeprefix("vit."): tensor for name, tensor in weights.items() if name.startswith("vit.")}


@dataclass(frozen=True)
class MaskedPatchLoss:
    """Cross-entropy over 512 colours, the mean over the corrupted patches. Labels are not read.

    Draws from torch's generator, until ``for_samples`` says of which samples it is.
    """

    seed: int | None = None
    positions: Sequence[int] = ()

    def for_samples(self, seed: int, positions: Sequence[int]) -> Loss:
        """See DrawingLoss."""
        return MaskedPatchLoss(seed, tuple(positions))

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """See Loss. *module* is a MaskedPatchNetwork, or wraps one."""
        if self.seed is None:
            logits, colours = module(images, int(torch.randint(2**62, ())), range(len(images)))
        else:
            logits, colours = module(images, self.seed, self.positions)
        return F.cross_entropy(logits.flatten(0, 1).float(), colours.flatten())


class MaskedPatchNetwork(nn.Module):
    """A ViT that sees a *share* of its patches corrupted, with mask token and decoder; both are zero at first."""

    def __init__(self, vit: ViT, share: float) -> None:
        super().__init__()
        self.vit, self.share = vit, share
        self.mask = nn.Parameter(torch.zeros(1, 1, vit.config.width))
        self.decoder = nn.Linear(vit.config.width, NUM_COLOURS)
        nn.init.zeros_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, images: Tensor, seed: int, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> logits (B, M, 512) and colours (B, M) of the corrupted patches, see ``draw_corruption``."""
        patches_BND = self.vit.embed(images)
        num_patches = patches_BND.shape[1]
        drawn = draw_corruption(seed, positions, num_patches, self.share)
        chosen, sources, masked = (
            torch.from_numpy(array).to(images.device) for array in (drawn.chosen, drawn.sources, drawn.masked)
        )
        corrupted_BMD = torch.where(masked[..., None], self.mask.to(patches_BND.dtype), _take(patches_BND, sources))
        patches_BND = patches_BND.scatter(1, chosen[..., None].expand_as(corrupted_BMD), corrupted_BMD)
        tokens = self.vit.encode(patches_BND)[:, -num_patches:]  # without the class token
        colours = mean_colours(images, self.vit.config.patch_size).gather(1, chosen)
        return self.decoder(_take(tokens, chosen)), colours


@dataclass(frozen=True)
class Corruption:
    """Of B images, M patches each.

    chosen int64 (B, M): which patches are corrupted, ascending; sources int64 (B, M): the patch whose embedding each
    has, its own where it is left as it is; masked bool (B, M): those that have the mask token instead.
    """

    chosen: NDArray[np.int64]
    sources: NDArray[np.int64]
    masked: NDArray[np.bool_]


def draw_corruption(seed: int, positions: Sequence[int], num_patches: int, share: float) -> Corruption:
    """For the samples at *positions* of the global order. A sample has other draws in each epoch."""
    shape = len(positions), num_corrupted(num_patches, share)
    chosen, sources = np.empty(shape, np.int64), np.empty(shape, np.int64)
    masked = np.empty(shape, np.bool_)
    for row, position in enumerate(positions):
        draws = generator(seed, "corruption", position)
        chosen[row] = np.sort(draws.permutation(num_patches)[: shape[1]])
        kind = draws.random(shape[1])
        others = (chosen[row] + 1 + draws.integers(max(1, num_patches - 1), size=shape[1])) % num_patches
        masked[row] = kind < _MASKED_SHARE
        sources[row] = np.where((kind >= _MASKED_SHARE) & (kind < _MASKED_SHARE + _REPLACED_SHARE), others, chosen[row])
    return Corruption(chosen, sources, masked)


def mean_colours(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, S, S) in [-1, 1] -> int64 (B, N) below 512: red, green and blue of each patch's mean, 3 bits each.

    ViT does not say how it quantises: here to eight intervals of equal width over the 256 values of a pixel.
    """
    means: Tensor = patchify(images.float(), patch_size).unflatten(2, (_CHANNELS, -1)).mean(dim=-1)
    values = (means + 1.0) * 127.5 + _ROUNDING
    levels = (values * (COLOUR_LEVELS / 256)).floor().clamp(0, COLOUR_LEVELS - 1).long()
    return (levels[..., 0] * COLOUR_LEVELS + levels[..., 1]) * COLOUR_LEVELS + levels[..., 2]


def _take(values_BND: Tensor, index_BM: Tensor) -> Tensor:
    """(B, N, D), (B, M) -> (B, M, D)."""
    return values_BND.gather(1, index_BM[..., None].expand(-1, -1, values_BND.shape[-1]))
