"""The optimizer: groups of parameters that share weight decay and learning rate, and the state that it keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.train.recipe import OptimizerRecipe

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_EMBEDDINGS = frozenset({"patches", "cls", "positions", "mask"})  # names of the parameters before the first block


def make_optimizer(
    module: nn.Module, recipe: OptimizerRecipe, decayed: Callable[[str, Tensor], bool]
) -> torch.optim.Optimizer:
    """The optimizer of *recipe* over the groups of :func:`parameter_groups`."""
    groups = parameter_groups(module, recipe, decayed)
    if recipe.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.epsilon)


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Every group's rate is *learning_rate* times its ``lr_scale`` (layer-wise decay)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


def parameter_groups(
    module: nn.Module, recipe: OptimizerRecipe, decayed: Callable[[str, Tensor], bool]
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, each ``{"params", "weight_decay", "lr_scale"}``; none is empty.

    Parameters that need no gradient are left out. *decayed* says which weight decay touches. Without layer-wise decay
    there are two groups: those, and the rest. Whoever sets the learning rate multiplies it by ``lr_scale``.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    scales = lr_scales([name for name, _ in named], recipe.layer_decay)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in named:
        has_decay = decayed(name, parameter)
        group = groups.setdefault(
            (scales[name], has_decay),
            {"params": [], "weight_decay": recipe.weight_decay if has_decay else 0.0, "lr_scale": scales[name]},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def lr_scales(names: list[str], layer_decay: float) -> dict[str, float]:
    """The share of the learning rate of each parameter of a ViT, or of a module that holds one.

    With L blocks, block i (1 is the first) has ``layer_decay ** (L + 1 - i)``, the embeddings have
    ``layer_decay ** (L + 1)``, and the parameters after the blocks have 1 (BEiT, arXiv 2106.08254, appendix; MAE's
    ``lr_decay.py``).
    """
    depth = max((int(match[1]) + 1 for name in names if (match := _BLOCK.search(name))), default=0)
    return {name: layer_decay ** (depth + 1 - _layer(name, depth)) for name in names}


def _layer(name: str, depth: int) -> int:
    """0: embeddings; 1 to *depth*: blocks; *depth* + 1: what follows."""
    match = _BLOCK.search(name)
    if match:
        return int(match[1]) + 1
    return 0 if depth and _EMBEDDINGS.intersection(name.split(".")) else depth + 1


def state_kinds(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What *optimizer* keeps for each weight, as torch names it. Raises TypeError for one not known here."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ("exp_avg", "exp_avg_sq")
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    raise TypeError(f"what {type(optimizer).__name__} keeps is not known")


def prepare_state(optimizer: torch.optim.Optimizer, masters: Iterable[Tensor]) -> None:
    """Make now the state that torch would make in the first update, so that it can be saved and filled before.

    A momentum of zeros gives the same first update as none: momentum * 0 + gradient.
    """
    for master in masters:
        state = {kind: torch.zeros_like(master.detach()) for kind in state_kinds(optimizer)}
        if isinstance(optimizer, torch.optim.AdamW):
            state["step"] = torch.tensor(0.0)
        optimizer.state[master] = state


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """*updates* updates are done: Adam's bias correction goes on from there."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(float(updates))
