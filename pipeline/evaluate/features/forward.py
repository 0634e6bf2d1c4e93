"""Several features in one forward pass.

Shapes: B images, S pixels of a side, N tokens (the class token first, where there is one), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.evaluate.features.spec import FeatureSpec
from pipeline.evaluate.networks import PixelNetwork
from pipeline.images.normalise import normalise
from pipeline.models.vit import ViT

Forward = Callable[[Tensor], list[Tensor]]


def forward_of(network: ViT | PixelNetwork, specs: Sequence[FeatureSpec]) -> Forward:
    """uint8 (B, 3, S, S) -> for each of *specs* float32 (B, D), on the network's device. No block is run twice at one
    precision. Raises InputError for a layer or pooling that the network does not have.
    """
    if isinstance(network, PixelNetwork):
        return lambda images: [network.features(normalise(images, torch.float32)) for _ in specs]
    return _Forward(network, specs)


class _Forward:
    def __init__(self, network: ViT, specs: Sequence[FeatureSpec]) -> None:
        self._network, self._specs = network, specs
        self._device = network.norm.weight.device
        self._blocks = [_block(spec, network.config.depth) for spec in specs]
        for spec in specs:
            if "cls" in spec.pooling and network.cls is None:
                raise InputError(f"pooling {spec.pooling}: this network has no class token", "use gap, or model")

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> list[Tensor]:
        images = normalise(images_BCHW.to(self._device), torch.float32)
        found: dict[FeatureSpec, Tensor] = {}
        for dtype in dict.fromkeys(spec.dtype for spec in self._specs):
            wanted = [(spec, at) for spec, at in zip(self._specs, self._blocks, strict=True) if spec.dtype == dtype]
            with torch.autocast(self._device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
                tokens = self._network.intermediate(images, {block for _, block in wanted}, normed=True)
                found |= {spec: self._pooled(spec, tokens[block]) for spec, block in wanted}
        return [found[spec].float() for spec in self._specs]

    def _pooled(self, spec: FeatureSpec, tokens_BND: Tensor) -> Tensor:
        if spec.layer == "head-input":
            return self._network.head_input(tokens_BND)
        has_cls = self._network.cls is not None
        pooling = ("cls" if has_cls else "gap") if spec.pooling == "model" else spec.pooling
        parts = [tokens_BND[:, 0]] if "cls" in pooling else []
        if "gap" in pooling:
            parts.append(tokens_BND[:, int(has_cls) :].mean(dim=1))
        return torch.cat(parts, dim=1)


def _block(spec: FeatureSpec, depth: int) -> int:
    """The block whose output it is, from 1."""
    if isinstance(spec.layer, str):
        return depth
    block = depth + 1 + spec.layer if spec.layer < 0 else spec.layer
    if not 1 <= block <= depth:
        raise InputError(f"layer {spec.layer}: this network has blocks 1 to {depth}, or -{depth} to -1")
    return block
