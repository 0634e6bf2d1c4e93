"""What a network costs, from its configuration alone: parameters, FLOPs, and the activations that training keeps.

One multiply-add counts as 2 FLOPs, and only matrix products count: what ``torch.utils.flop_counter`` counts too.
Shapes: N tokens, D width, M the MLP's width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipeline.models.config import ViTConfig

_CHANNELS = 3  # of an image


def count_parameters(config: ViTConfig) -> int:
    """Trained parameters; fixed (sine-cosine) positions are not among them."""
    d, m, p = config.width, config.mlp_width, config.patch_size
    patches = _dense(_CHANNELS * p * p, d)
    tokens = (d if config.pool == "cls" else 0) + (config.num_tokens * d if config.position == "learned" else 0)
    norm = 2 * d
    block = 2 * norm + _dense(d, 3 * d) + _dense(d, d) + _dense(d, m) + _dense(m, d)
    features = config.pre_logits or d
    head = _dense(d, config.pre_logits) if config.pre_logits else 0
    head += _dense(features, config.num_classes) if config.num_classes else 0
    return patches + tokens + config.depth * block + norm + head


def _dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass of one image, by part."""

    patches: int
    projections: int  # q, k, v and the output of attention
    scores: int  # q k' and the product of its softmax with v
    mlp: int
    head: int  # pre-logits too

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, field.name) for field in fields(self))


def flops_per_image(config: ViTConfig, *, all_rows: bool = False) -> Flops:
    """Of a forward pass of one image to its logits.

    With a class token the last block computes that token alone; with *all_rows* it computes all of them.
    """
    n, d, m = config.num_tokens, config.width, config.mlp_width
    features = config.pre_logits or d
    rows = (config.depth - 1) * n + (1 if config.pool == "cls" and not all_rows else n)  # outputs of all blocks
    return Flops(
        patches=2 * config.grid**2 * _CHANNELS * config.patch_size**2 * d,
        projections=2 * (config.depth * n * 3 + rows) * d * d,
        scores=2 * 2 * rows * n * d,
        mlp=2 * 2 * rows * d * m,
        head=2 * d * config.pre_logits + 2 * features * config.num_classes,
    )


def training_flops_per_image(config: ViTConfig, checkpointed: bool = False, *, all_rows: bool = False) -> int:
    """Of a forward and a backward pass of one image; *all_rows*: see ``flops_per_image``.

    Backward is two products for each of forward's, but one for the patches, whose input needs no gradient. With
    activation checkpointing the blocks are computed once more; model FLOPs utilisation (MFU) leaves that out.
    """
    forward = flops_per_image(config, all_rows=all_rows)
    again = forward.projections + forward.scores + forward.mlp if checkpointed else 0
    return 3 * forward.total - forward.patches + again


def activation_bytes_per_image(
    config: ViTConfig, element_bytes: int, checkpointed: bool = False, *, all_rows: bool = False
) -> int:
    """Bytes that autograd saves of one image between forward and backward, with fused attention. An estimate.

    Of a block: the inputs of both norms, of the four dense layers and of GELU, and q, k, v; a byte for each element of
    a dropout's mask, as on a GPU (CPUs keep a whole element). Of the last one, where it computes the class token
    alone: the input of the first norm, of q, k and v, and these. With checkpointing: the input of each block, and all
    of one block while it is computed again.
    """
    n, d, m = config.num_tokens, config.width, config.mlp_width
    masks = n * (2 * d + m) if config.dropout else 0
    block = element_bytes * n * (8 * d + 2 * m) + masks + 4 * n * (4 + config.heads)  # and float32 statistics
    last = element_bytes * n * 5 * d + 4 * n * 2 if config.pool == "cls" and not all_rows else block
    blocks = element_bytes * config.depth * n * d + block if checkpointed else (config.depth - 1) * block + last
    patches = element_bytes * config.grid**2 * _CHANNELS * config.patch_size**2
    ends = element_bytes * (2 * n * d + d + 2 * config.pre_logits + config.num_classes)
    return blocks + patches + ends
