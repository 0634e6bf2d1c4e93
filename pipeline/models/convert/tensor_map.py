"""What the tables of timm and Hugging Face share: a convolution for the patches; q, k, v apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT

_SHOWN = 5  # tensors named in one message
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class TensorMapping:
    """Our tensor *ours* and the foreign ones that hold it; ``split`` and ``join`` are each other's inverse."""

    ours: str
    theirs: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class ConvertedWeights:
    """An architecture and its weights under our names, float32."""

    config: ViTConfig
    state: dict[str, Tensor]


def same(ours: str, theirs: str) -> TensorMapping:
    """Equal in name's meaning and in layout."""
    return TensorMapping(ours, (theirs,), lambda tensor: (tensor,), lambda tensors: tensors[0])


def permuted(
    ours: str, theirs: str, forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
) -> TensorMapping:
    """One tensor in another layout."""
    return TensorMapping(ours, (theirs,), lambda tensor: (forth(tensor),), lambda tensors: back(tensors[0]))


def layer(ours: str, theirs: str) -> list[TensorMapping]:
    """A dense layer or norm in torch's naming and layout."""
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def whole_state(model: ViT) -> dict[str, Tensor]:
    """The state of *model*, fixed positions included."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()} | {
        "positions": model.positions.detach()
    }


def to_foreign(rows: list[TensorMapping], state: Tensors) -> dict[str, Tensor]:
    """The foreign tensors of *state*, contiguous."""
    found: dict[str, Tensor] = {}
    for row in rows:
        parts = row.split(state[row.ours])
        found |= {name: part.contiguous() for name, part in zip(row.theirs, parts, strict=True)}
    return found


def from_foreign(rows: list[TensorMapping], tensors: Tensors, config: ViTConfig, where: str) -> ConvertedWeights:
    """Our tensors, float32. Raises InputError that names each tensor too many, too few or of another shape."""
    with torch.device("meta"):
        expected = to_foreign(rows, whole_state(ViT(config)))
    check_names(set(tensors), set(expected), where)
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(f"{where}: {_listed(wrong)}", "it is no plain ViT, or of another size")
    not_numbers = [name for name in expected if not tensors[name].is_floating_point()]
    if not_numbers:
        raise InputError(f"{where}: no floating-point numbers: {_listed(not_numbers)}")
    state = {row.ours: row.join([tensors[name].float() for name in row.theirs]).contiguous() for row in rows}
    return ConvertedWeights(config, state)


def check_names(found: set[str], expected: set[str], where: str) -> None:
    """Raise InputError, naming the differences, unless both are the same."""
    missing, extra = sorted(expected - found), sorted(found - expected)
    problems = [f"missing: {_listed(missing)}"] if missing else []
    problems += [f"not of a plain ViT: {_listed(extra)}"] if extra else []
    if problems:
        raise InputError(f"{where}: tensors {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


CHANNELS = 3


def patches_row(config: ViTConfig, theirs: str) -> TensorMapping:
    """The patch projection, (D, C*P*P), as the kernel of a convolution, (D, C, P, P)."""
    kernel = (-1, CHANNELS, config.patch_size, config.patch_size)
    return permuted(
        "patches.projection.weight", theirs, lambda tensor: tensor.reshape(kernel), lambda tensor: tensor.flatten(1)
    )


def separated(ours: str, theirs: tuple[str, str, str]) -> TensorMapping:
    """Our fused q, k, v as three tensors."""
    return TensorMapping(ours, theirs, lambda tensor: tensor.chunk(3), lambda tensors: _joined(list(tensors)))


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors)


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
