"""The network as a run begins with it: drawn from its seed, or with weights from elsewhere (``init``).

Weights of ``init`` are checked before anything starts, and loaded by every rank. They count once, for a run that has
nothing to resume and is no fork: own run -> fork's parent -> ``init`` -> scratch. run.json has their sha256, so that a
file which changes before the ranks have read it is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError, MismatchError
from pipeline.base.seeds import derive
from pipeline.base.store.protocol import Store, Stores
from pipeline.checkpoints.state import EMA, WEIGHT
from pipeline.checkpoints.warm_start import compute_digest, find_weights, read_header, read_initial
from pipeline.models.config import ViTConfig
from pipeline.models.registry import build_network
from pipeline.models.vit import ViT
from pipeline.models.weights import unpack_description, unpack_model
from pipeline.pretrain.objectives.objective import Objective
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import list_steps, read_run_card, run_prefix

_log = logging.getLogger(__name__)

_HEAD = ("head.", "pre_logits.")  # parameters that are loaded only where the classes are the same
# Fields of the architecture that need not be those of the weights.
_MAY_DIFFER = {"num_classes", "head_bias", "dropout", "drop_path", "pre_logits", "position_std"}


def check_initial(workspace: Store, stores: Stores, recipe: PretrainRecipe, parent: str | None = None) -> str:
    """The sha256 of the weights that a new run begins with, for its card; "" when ``init`` does not count.

    *parent*: of a fork. Raises InputError when there are no such weights, MismatchError naming how their architecture
    differs, and what ``compute_digest`` raises. Nothing but their header is kept in memory.
    """
    if not recipe.init or parent is not None or list_steps(workspace, recipe.run):
        return ""
    is_new = workspace.head(f"{run_prefix(recipe.run)}/run.json") is None
    if not is_new and read_run_card(workspace, recipe.run).parent is not None:
        return ""
    initial = find_weights(workspace, recipe.init, stores)
    try:
        stored = unpack_description(read_header(initial), recipe.init).architecture
    except DamageError as error:
        raise InputError(
            f"init: {error.message}", "vitpipe import makes a model.safetensors of npz, timm and Hugging Face files"
        ) from None
    _check_architecture(recipe.model, stored, recipe.init)
    return compute_digest(initial) if is_new else ""


def load_initial_weights(
    vit: ViT, class_names: Sequence[str], workspace: Store, stores: Stores, recipe: PretrainRecipe, sha256: str
) -> None:
    """Fill *vit* with the weights of ``recipe.init``, whose digest has to be *sha256* ("": was not noted).

    The head is taken over too when it is of the same classes, in their order; else it stays as it was drawn. Raises
    MismatchError, and what ``read_initial`` raises.
    """
    source = recipe.init
    data = read_initial(workspace, source, stores)
    digest = sha256_hex(data)
    if sha256 not in ("", digest):
        raise MismatchError(
            f"init {source} has changed since run {recipe.run} was made: sha256 {sha256[:12]} -> {digest[:12]}",
            "bring the file back, or name another run",
        )
    model, description = unpack_model(data, source)
    _check_architecture(vit.config, description.architecture, source)
    own, stored = vit.state_dict(), model.state_dict()
    names = [name for name in own if name in stored and not name.startswith(_HEAD)]
    if _is_head_of(description.class_names, class_names):
        names += [name for name in own if name.startswith(_HEAD) and name in stored]
    names = [name for name in names if own[name].shape == stored[name].shape]
    vit.load_state_dict(own | {name: stored[name] for name in names})
    missing = sorted(own.keys() - set(names))
    _log.info("begins with the weights of %s (sha256 %s)", source, digest)
    if missing:
        _log.info("which has nothing for: %s; they begin as drawn", ", ".join(missing))


def _is_head_of(stored: Sequence[str], own: Sequence[str]) -> bool:
    """Weights from elsewhere may name no classes: then their number decides, by the head's shape."""
    return not stored or tuple(stored) == tuple(own)


def _check_architecture(own: ViTConfig, stored: ViTConfig, source: str) -> None:
    old, new = stored.model_dump(), own.model_dump()
    fields = [f"{name}: {old[name]} -> {new[name]}" for name in new if old.get(name) != new[name]]
    fields = [text for text in fields if text.partition(":")[0] not in _MAY_DIFFER]
    if fields:
        raise MismatchError(f"init {source} is of another architecture: {'; '.join(fields)}")


def first_network(
    recipe: PretrainRecipe, config: ViTConfig, objective: Objective, begin: Callable[[ViT], None] = lambda _: None
) -> nn.Module:
    """What the engine trains: the same on every rank. *begin* may give the drawn network other weights."""
    vit = build_network(config, seed=derive(recipe.seed, "weights"))
    begin(vit)
    if recipe.checkpoint_blocks:
        vit.checkpointing = True
    return objective.network(vit)


@dataclass(frozen=True)
class InitialState:
    """*network* as a FragmentReader: its weights, an average equal to them, and an optimizer that has done nothing."""

    network: nn.Module
    updates: Final[int] = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See FragmentReader."""
        return {name: tuple(parameter.shape) for name, parameter in self.network.named_parameters()}

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See FragmentReader."""
        if kind not in (WEIGHT, EMA):
            return torch.zeros(stop - start)
        return self.network.get_parameter(name).detach().float().flatten()[start:stop]
