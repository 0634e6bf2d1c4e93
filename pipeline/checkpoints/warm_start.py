"""Weights to start from, without any other state: a file somewhere, or those of a checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError
from pipeline.base.store.open import normalise_uri, open_store, split_uri
from pipeline.base.store.protocol import Store, Stores
from pipeline.records.run import parse_reference, read_checkpoint_card, step_prefix

_CHUNK_BYTES = 32 << 20  # many times the longest header: 22,000 class names are 1 MB


@dataclass(frozen=True)
class WeightsSource:
    """A model file, seen to be there. ``sha256``: what a checkpoint's card says; "" of a file that has no card."""

    store: Store
    key: str
    etag: str
    num_bytes: int
    sha256: str = ""


def find_weights(workspace: Store, init: str, stores: Stores, *, ema: bool = False) -> WeightsSource:
    """The model file that *init* names: a path or URI of a ``.safetensors`` file, or RUN@STEP.

    *ema*: of a checkpoint, its moving average instead of its weights. Raises InputError when there is none,
    DamageError when a checkpoint's is missing.
    """
    if init.endswith(".safetensors"):
        folder, name = split_uri(normalise_uri(init))
        store = open_store(folder, stores)
        info = store.head(name)
        if info is None:
            raise InputError(f"there is no {init}", "init is a .safetensors file, or RUN@STEP")
        return WeightsSource(store, name, info.etag, info.num_bytes)
    run, step = parse_reference(init)
    card = read_checkpoint_card(workspace, run, step)
    file = card.ema_weights if ema else card.weights
    if file is None:
        raise InputError(f"checkpoint {init} has no moving average", "its run was trained with ema: 0")
    key = f"{step_prefix(run, step)}/{file.name}"
    info = workspace.head(key)
    if info is None:
        raise DamageError(f"{key} is missing", "name another checkpoint")
    return WeightsSource(workspace, key, info.etag, info.num_bytes, file.sha256)


def read_initial(workspace: Store, init: str, stores: Stores, *, ema: bool = False) -> bytes:
    """The bytes of what ``find_weights`` finds. Of a checkpoint the digest is verified: DamageError."""
    initial = find_weights(workspace, init, stores, ema=ema)
    data = initial.store.read(initial.key)
    _check(initial, sha256_hex(data))
    return data


def read_header(initial: WeightsSource) -> bytes:
    """The first bytes, of which its description is one part."""
    return initial.store.read_range(initial.key, 0, _CHUNK_BYTES, initial.etag)


def compute_digest(initial: WeightsSource) -> str:
    """The sha256 of all of it, read piece by piece; of a checkpoint it is verified: DamageError."""
    running = hashlib.sha256()
    for start in range(0, initial.num_bytes, _CHUNK_BYTES):
        running.update(initial.store.read_range(initial.key, start, _CHUNK_BYTES, initial.etag))
    _check(initial, running.hexdigest())
    return running.hexdigest()


def _check(initial: WeightsSource, digest: str) -> None:
    if initial.sha256 not in ("", digest):
        raise DamageError(
            f"{initial.key}: its bytes are not those that the checkpoint's card names", "name another one"
        )
