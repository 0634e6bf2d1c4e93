"""The validation part of a training set: by a hash of the key, so it does not move when samples are added."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError


def validation_mask(keys: tuple[str, ...], share: float) -> NDArray[np.bool_]:
    """True for the samples held out: about *share* of them. Raises InputError when one side would be empty."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8, person=b"validation").digest() for key in keys)
    places = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    mask: NDArray[np.bool_] = places < share
    if mask.all() or not mask.any():
        raise InputError(f"{len(keys)} training samples are too few to hold out {share:.0%} of them")
    return mask
