"""Tables "own tensor <-> foreign tensors", and the rows that several formats share.

What is missing, extra or of another shape is refused by name. Shapes: D width, C = 3 channels, P side of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT

CHANNELS = 3
_SHOWN = 5  # tensors named in one message

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class TensorMapping:
    """Our tensor *own* and the foreign ones that hold it; ``split`` and ``join`` are each other's inverse."""

    own: str
    foreign: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class ConvertedWeights:
    """An architecture and its weights under our names, float32."""

    config: ViTConfig
    state: dict[str, Tensor]


def same_layout(own: str, foreign: str) -> TensorMapping:
    """One tensor, as it is, under another name."""
    return TensorMapping(own, (foreign,), lambda tensor: (tensor,), lambda tensors: tensors[0])


def permuted(
    own: str, foreign: str, forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
) -> TensorMapping:
    """One tensor in another layout."""
    return TensorMapping(own, (foreign,), lambda tensor: (forth(tensor),), lambda tensors: back(tensors[0]))


def layer_mappings(own: str, foreign: str) -> list[TensorMapping]:
    """A dense layer or norm in torch's naming and layout."""
    return [same_layout(f"{own}.{part}", f"{foreign}.{part}") for part in ("weight", "bias")]


def patches_mapping(config: ViTConfig, foreign: str) -> TensorMapping:
    """The patch projection, (D, C*P*P), as the kernel of a convolution, (D, C, P, P)."""
    kernel = (-1, CHANNELS, config.patch_size, config.patch_size)
    return permuted(
        "patches.projection.weight", foreign, lambda tensor: tensor.reshape(kernel), lambda tensor: tensor.flatten(1)
    )


def qkv_mapping(own: str, foreign: tuple[str, str, str]) -> TensorMapping:
    """Our fused q, k, v as three tensors."""
    return TensorMapping(own, foreign, lambda tensor: tensor.chunk(3), lambda tensors: torch.cat(list(tensors)))


def full_state(model: ViT) -> dict[str, Tensor]:
    """The state of *model*, fixed positions included."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()} | {
        "positions": model.positions.detach()
    }


def to_foreign(mappings: list[TensorMapping], state: Tensors) -> dict[str, Tensor]:
    """The foreign tensors of *state*, contiguous."""
    tensors: dict[str, Tensor] = {}
    for mapping in mappings:
        parts = mapping.split(state[mapping.own])
        tensors |= {name: part.contiguous() for name, part in zip(mapping.foreign, parts, strict=True)}
    return tensors


def from_foreign(
    mappings: list[TensorMapping], tensors: Tensors, config: ViTConfig, source_name: str
) -> ConvertedWeights:
    """Our tensors, float32. Raises InputError that names each tensor too many, too few or of another shape."""
    with torch.device("meta"):
        expected = to_foreign(mappings, full_state(ViT(config)))
    _check_names(set(tensors), set(expected), source_name)
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(f"{source_name}: {_listed(wrong)}", "it is no plain ViT, or of another size")
    not_numbers = [name for name in expected if not tensors[name].is_floating_point()]
    if not_numbers:
        raise InputError(f"{source_name}: no floating-point numbers: {_listed(not_numbers)}")
    state = {
        mapping.own: mapping.join([tensors[name].float() for name in mapping.foreign]).contiguous()
        for mapping in mappings
    }
    return ConvertedWeights(config, state)


def _check_names(names: set[str], expected: set[str], source_name: str) -> None:
    """Raise InputError, naming the differences, unless both are the same."""
    missing, extra = sorted(expected - names), sorted(names - expected)
    problems = [f"missing: {_listed(missing)}"] if missing else []
    problems += [f"not of a plain ViT: {_listed(extra)}"] if extra else []
    if problems:
        raise InputError(f"{source_name}: tensors {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def fold_normalisation(state: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """*state* for pixels in [-1, 1], of weights for (pixel / 255 - mean) / std; mean and std per channel.

    With p = (y + 1) / 2: (p - mean) / std = y / (2 std) + (1 - 2 mean) / (2 std).
    """
    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    weight = state["patches.projection.weight"].double()
    kernel_DCP = weight.reshape(weight.shape[0], CHANNELS, -1)
    scaled = kernel_DCP / (2 * std_C)[None, :, None]
    shift = (scaled * (1 - 2 * mean_C)[None, :, None]).sum(dim=(1, 2))
    bias = state["patches.projection.bias"].double() + shift
    folded = {"patches.projection.weight": scaled.flatten(1).float(), "patches.projection.bias": bias.float()}
    return state | folded
