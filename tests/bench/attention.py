"""A training step of the demo's ViT: explicit attention against torch's fused CPU kernel, one thread."""

from __future__ import annotations

from unittest import mock

import torch

import pipeline.models.attention as module
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from tests.bench.row import Row, rate

_BATCH = 50


def measure() -> list[Row]:
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        config = ViTConfig(
            image_size=28, patch_size=4, width=64, depth=4, mlp_width=256, heads=2, num_classes=10, pool="gap"
        )
        model = ViT(config).to(dtype)
        images = torch.randn(_BATCH, 3, 28, 28).to(dtype)

        def step(model: ViT = model, images: torch.Tensor = images) -> int:
            model(images).float().square().sum().backward()
            return _BATCH

        ours = rate(step)
        with mock.patch.object(module, "_EXPLICIT_ON_CPU_BELOW", 0):
            peer = rate(step)
        name = str(dtype).removeprefix("torch.")
        what = f"forward and backward, 49 tokens, {name}: explicit attention against fused"
        rows.append(Row(what, f"{ours:.0f} images/s", f"{peer:.0f} images/s", ours / peer))
    return rows
