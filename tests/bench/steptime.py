"""A training step (forward, softmax loss, backward) of our ViT and of transformers', both eager, one thread, in turns.

CPU time, best of the rounds. The same shape, parameters, GELU, batch and dtype; weights in that dtype on both sides.
transformers is measured with its default attention (torch's scaled-dot-product) and with its explicit one. A ratio is
the peer's time by ours: at least 1 in float32 and 1 / 0.95 in bfloat16. The share of the peak is of one thread's best
square matrix product; the profile says what the rest goes into.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.config import ViTConfig, config_by_name
from pipeline.models.vit import ViT
from pipeline.train.device import measured_peak
from tests.bench.row import Row, table
from tests.bench.training import CLASSES

_CASES = {
    "S/16, 224 px": (config_by_name("S/16", num_classes=CLASSES, gelu="exact"), 8),
    "5.5 M parameters, 32 px, patch 4": (config_by_name("Ti/4", image_size=32, num_classes=CLASSES, gelu="exact"), 64),
}
_DTYPES = {torch.float32: 1.0, torch.bfloat16: 1 / 0.95}
_ROUNDS = 5
_KINDS = {
    "matrix products": ("addmm", "mm", "bmm", "baddbmm", "mkldnn", "linear"),
    "fused attention": ("scaled_dot_product", "flash_attention"),
    "softmax": ("softmax",),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm",),
    "sums (bias gradients too)": ("add", "sum"),
    "copies": ("copy", "clone", "cat", "contiguous", "fill", "zero"),
}

Step = Callable[[], None]


def section() -> str:
    """The ratios, the shares of the peak, and the profile of each side."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows, shares, profiles = [], [], []
    for name, (config, batch) in _CASES.items():
        for dtype, least in _DTYPES.items():
            what = f"{name}, batch {batch}, {str(dtype).removeprefix('torch.')}"
            steps = _steps(config, batch, dtype)
            best, flops = _best(steps), {side: _flops(step) for side, step in steps.items()}
            for peer in list(steps)[1:]:
                told = (f"{best[one] / batch * 1e3:.2f} ms/image" for one in ("ours", peer))
                rows.append(Row(f"{what}, against {peer}", *told, best[peer] / best["ours"], least))
            peak = measured_peak(dtype, torch.device("cpu"))
            for side, seconds in best.items():
                reached = flops[side] / seconds
                shares.append(f"| {what} | {side} | {reached / 1e9:.0f} | {peak / 1e9:.0f} | {reached / peak:.0%} |")
            profiles += [f"| {what} | {side} | {_profile(steps[side])} |" for side in steps]
    head = "| step | side | GFLOP/s | peak GFLOP/s | share |\n|---|---|---|---|---|\n"
    where = "| step | side | CPU time |\n|---|---|---|\n"
    return "\n".join([table(rows), head + "\n".join(shares), "", where + "\n".join(profiles), ""])


def _steps(config: ViTConfig, batch: int, dtype: torch.dtype) -> dict[str, Step]:
    size = (batch, 3, config.image_size, config.image_size)
    images, labels = torch.randn(size).to(dtype), torch.randint(0, CLASSES, (batch,))
    ours = ViT(config)
    sides: dict[str, Any] = {"ours": ours}
    for attention in ("sdpa", "eager"):
        peer = _transformers(config, attention)
        assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in ours.parameters())
        sides[f"transformers {transformers.__version__}, {attention}"] = peer
    return {name: _step(module.to(dtype).train(), images, labels) for name, module in sides.items()}


def _transformers(config: ViTConfig, attention: str) -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            layer_norm_eps=1e-6,
            num_labels=config.num_classes,
            attn_implementation=attention,
        )
    )


def _step(module: nn.Module, images: Tensor, labels: Tensor) -> Step:
    def step() -> None:
        module.zero_grad(set_to_none=True)
        output = module(images)
        logits = output if isinstance(output, Tensor) else output.logits
        F.cross_entropy(logits.float(), labels).backward()

    return step


def _best(steps: dict[str, Step]) -> dict[str, float]:
    """CPU seconds of a step, best of rounds in turns, after one round to warm up."""
    best = dict.fromkeys(steps, float("inf"))
    for number in range(_ROUNDS + 1):
        for name, step in steps.items():
            started = time.process_time()
            step()
            if number:
                best[name] = min(best[name], time.process_time() - started)
    return best


def _flops(step: Step) -> int:
    """Of the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _profile(step: Step) -> str:
    """Shares of CPU time by kind of operation, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent[_kind(event.key)] += event.self_cpu_time_total
    whole = sum(spent.values())
    return ", ".join(f"{kind} {share / whole:.0%}" for kind, share in spent.most_common() if share > whole / 100)


def _kind(operation: str) -> str:
    name = operation.removeprefix("aten::").lstrip("_")
    return next((kind for kind, starts in _KINDS.items() if name.startswith(starts)), "the rest")


if __name__ == "__main__":
    print(section())
