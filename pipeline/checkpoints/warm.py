"""Weights to start from, without any other state: a file somewhere, or those of a checkpoint."""

from __future__ import annotations

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store import Store, Stores, normalise_uri, open_store, split_uri
from pipeline.records.run import parse_reference, read_checkpoint_card, step_prefix


def read_initial(workspace: Store, init: str, stores: Stores, *, ema: bool = False) -> bytes:
    """The bytes of the model file that *init* names: a path or URI of a ``.safetensors`` file, or RUN@STEP.

    Of a checkpoint the digest is verified; *ema*: its moving average instead of its weights. Raises InputError when
    there is none, DamageError.
    """
    if init.endswith(".safetensors"):
        folder, name = split_uri(normalise_uri(init))
        try:
            return open_store(folder, stores).read(name)
        except FileNotFoundError:
            raise InputError(f"there is no {init}", "init is a .safetensors file, or RUN@STEP") from None
    run, step = parse_reference(init)
    card = read_checkpoint_card(workspace, run, step)
    file = card.ema_weights if ema else card.weights
    if file is None:
        raise InputError(f"checkpoint {init} has no moving average", "its run was trained with ema: 0")
    key = f"{step_prefix(run, step)}/{file.name}"
    try:
        data = workspace.read(key)
    except FileNotFoundError:
        raise DamageError(f"{key} is missing", "name another checkpoint") from None
    if sha256_hex(data) != file.sha256:
        raise DamageError(f"{key}: its bytes are not those that the checkpoint's card names", "name another one")
    return data
