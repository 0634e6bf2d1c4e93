"""Seeds for every random draw: a draw is named by labels, never by when or where it happens."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed from *seed* and the *labels* that name the draw (epoch, sample key, step, ...)."""
    text = "\x1f".join([str(seed), *(str(label) for label in labels)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A numpy generator for the draw named by *labels*.

    Philox, because its stream for a key is fixed by its definition and does not depend on the platform.
    """
    return np.random.Generator(np.random.Philox(key=derive(seed, *labels)))
