"""Multi-head self-attention. Shapes: B images, N tokens, D width, H heads, E = D / H."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# Below this length, on a CPU, the plain product beats torch's fused kernel: its backward took over half of a
# training step at 49 tokens (tests/bench has the comparison).
_EXPLICIT_ON_CPU_BELOW = 512


def attend(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor) -> Tensor:
    """softmax(q k' / sqrt(E)) v, (B, H, N, E) -> (B, H, N, E); there may be fewer queries than keys."""
    if q_BHNE.device.type == "cpu" and k_BHNE.shape[-2] < _EXPLICIT_ON_CPU_BELOW:
        scores = (q_BHNE * q_BHNE.shape[-1] ** -0.5) @ k_BHNE.transpose(-1, -2)
        mixed: Tensor = scores.softmax(dim=-1) @ v_BHNE
        return mixed
    return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE)


class SelfAttention(nn.Module):
    """q, k and v share one matrix product but each third is initialised on its own (PROTOCOLS: Init)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def initialise(self, generator: torch.Generator) -> None:
        """Xavier-uniform for each kernel by its own fan, zero biases."""
        with torch.no_grad():
            for kernel in self.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(kernel, generator=generator)
            nn.init.xavier_uniform_(self.out.weight, generator=generator)
            self.qkv.bias.zero_()
            self.out.bias.zero_()

    def forward(self, x_BND: Tensor, rows: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, rows, D): what the first *rows* tokens gather from all of them."""
        q, k, v = self._projected(x_BND)
        out: Tensor = self.out(attend(q[:, :, :rows], k, v).transpose(1, 2).flatten(2))
        return out

    def weights(self, x_BND: Tensor) -> Tensor:
        """How much each token (row) attends to each: (B, N, D) -> (B, H, N, N), rows that sum to 1."""
        q, k, _ = self._projected(x_BND)
        weights: Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1)
        return weights

    def _projected(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: each (B, H, N, E)."""
        b, n, d = x_BND.shape
        q, k, v = self.qkv(x_BND).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v
